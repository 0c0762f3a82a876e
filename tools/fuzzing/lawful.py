"""What may come of an input: it is accepted for what it says, or refused in a line. Everything else is a finding."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST = 2000  # characters of a refusal in one line, and of each line of a listing
MOST_LINES = 50  # of a refusal that lists what is wrong, each further line indented or a count
COUNT = re.compile(r"\d+ (missing|unexpected|of another shape) \(")


class Refused(Exception):
    """A command's own refusal, in its words."""


class Unlawful(Exception):
    """A command ended as none may: with a traceback, or with a status that its words do not bear out."""


class FalsePass(Exception):
    """What was accepted is not what the input says, or ought to have been refused."""


def fault(text: str) -> str:
    """What is wrong with the words of a refusal; "" for nothing."""
    first, *more = text.split("\n")
    if not first.strip():
        return "it says nothing"
    if len(more) >= MOST_LINES or max(map(len, (first, *more))) > LONGEST:
        return f"it is too long: {len(more) + 1} lines, {len(text)} characters"
    if any(not (line.startswith("  ") or COUNT.match(line)) for line in more):
        return f"it is of {len(more) + 1} lines, and not a listing"
    if odd := next((c for c in text if c != "\n" and not c.isprintable()), ""):
        return f"it has a character that acts on a terminal, {odd!r}"
    return ""


def notes(texts: Sequence[str]) -> None:
    """Unlawful for a note that is not one short line."""
    for text in texts:
        if "\n" in text or (wrong := fault(text)):
            raise Unlawful(f"a note: {wrong if chr(10) not in text else 'several lines'}: {text[:300]!r}")
