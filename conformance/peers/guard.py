"""Calls into code that is not ours: what it raises is that peer's fault, what it warns of is kept, the run goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import t5g2ref

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


OURS = r"(t5g2ref|conformance)(\.|$)"
"""Modules whose warnings are ours to mend: they meet the filters that the caller set."""
_HOMES = (Path(__file__).resolve().parents[1], Path(t5g2ref.__file__).resolve().parent)


@contextmanager
def warnings_kept(who: str, notes: list[str]) -> Iterator[None]:
    """Warnings that arise in code that is not ours go into `notes`, each once, and nowhere else: a peer's new release
    may warn of anything, which is no fault of its numbers and may not spoil a progress bar or a test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", module=rf"(?!{OURS})")
        try:
            yield
        finally:
            foreign = [w for w in caught if not Path(w.filename).is_relative_to(_HOMES[0])]
            foreign = [w for w in foreign if not Path(w.filename).is_relative_to(_HOMES[1])]
            said = [f"{who} warns: {line(w.category.__name__)}: {line(w.message)}" for w in foreign]
            notes += [note for note in dict.fromkeys(said) if note not in notes]
    for w in caught:
        if w not in foreign:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


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
