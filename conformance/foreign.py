"""Calls into code that is not ours: whatever it does is a fault of that peer, and never the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
MOST, LINES = 1000, 20  # characters of a foreign line, and lines, that are shown


class PeerFault(RuntimeError):
    """What a peer did that a peer may not do, in a line."""


def line(value: object) -> str:
    """Foreign text in one line, cut, and without what a terminal would act on."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:  # its own __str__ may do anything
        text = f"a {type(value).__name__}"
    return "".join(c if c.isprintable() else " " for c in text[:MOST])


def said(error: BaseException) -> str:
    """An exception as a person reads it; lines behind the first are indented, so that none is taken for ours."""
    try:
        first, *more = str(error).splitlines() or [""]
    except Exception:
        first, more = "", []
    lines = [f"{type(error).__name__}: {line(first)}", *(f"    {line(text.strip())}" for text in more[:LINES])]
    return "\n".join(lines)


def call(what: str, function: Callable[..., T], *args: object, passing: tuple[type[BaseException], ...] = ()) -> T:
    """What `function` gives. Whatever it raises, `SystemExit` too, is a PeerFault, but for an interruption and what is
    named in `passing`.

    Args:
        what: said before the words of the fault, where they do not do alone.
    """
    passed: tuple[type[BaseException], ...] = (KeyboardInterrupt, *passing)
    try:
        return function(*args)
    except passed:
        raise
    except BaseException as error:
        raise PeerFault(f"{what} raised {said(error)}" if what else said(error)) from error
