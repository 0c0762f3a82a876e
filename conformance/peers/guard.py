"""Calls code that is not ours: what it raises becomes a PeerError, its warnings are kept, and the run goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import t5g2ref

T = TypeVar("T")
PACKAGE = "a peer's package"
"""Who warns while a peer is made."""
MOST, LINES = 1000, 20  # characters of a foreign line, and lines, that are shown


class PeerError(RuntimeError):
    """The peer raised, or did what no peer may do. The message says what, in a line."""


def line(value: object) -> str:
    """Foreign text in one line, cut, and without what a terminal would act on."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:  # its own __str__ may do anything
        text = f"a {type(value).__name__}"
    return "".join(c if c.isprintable() else " " for c in text[:MOST])


def said(error: BaseException) -> str:
    """An exception in words. Lines after the first are indented, so that none is taken for ours."""
    try:
        first, *more = str(error).splitlines() or [""]
    except Exception:
        first, more = "", []
    lines = [f"{type(error).__name__}: {line(first)}", *(f"    {line(text.strip())}" for text in more[:LINES])]
    return "\n".join(lines)


OURS = r"(t5g2ref|conformance)(\.|$)"
"""Modules whose warnings are ours to mend: the caller's filters apply to them."""
_HOMES = (Path(__file__).resolve().parents[1], Path(t5g2ref.__file__).resolve().parent)


@contextmanager
def warnings_kept(who: str, notes: list[str]) -> Iterator[None]:
    """Put warnings of code that is not ours into `notes`, each once, and nowhere else.

    A peer's new release may warn of anything. That says nothing about its numbers, and must not spoil a progress bar or
    a test.
    """
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
    """What `function` gives. Whatever it raises, even `SystemExit`, becomes a PeerError.

    Args:
        what: the call's name, put before the error's own words; "" where these are enough.
        passing: errors that are raised as they are, as an interruption is.
    """
    passed: tuple[type[BaseException], ...] = (KeyboardInterrupt, *passing)
    try:
        return function(*args)
    except passed:
        raise
    except BaseException as error:
        raise PeerError(f"{what} raised {said(error)}" if what else said(error)) from error
