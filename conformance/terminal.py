"""Standard output and standard error as rich prints to them."""

from __future__ import annotations

import os

from rich.console import Console

NARROWEST = 40  # columns; a terminal of fewer, or of none, is taken for one that says nothing
UNWATCHED = 100  # columns where nobody watches: a pipe, a file, a CI log


def console(*, stderr: bool = False) -> Console:
    """As wide as the terminal is, or as COLUMNS says; else of a width that a log keeps whole."""
    made = Console(stderr=stderr)
    known = made.is_terminal or "COLUMNS" in os.environ
    return made if known and made.width >= NARROWEST else Console(stderr=stderr, width=UNWATCHED)
