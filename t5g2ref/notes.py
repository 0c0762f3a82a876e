"""What is to be said of an input that is accepted all the same: a warning of a class of its own, in one line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class Note(UserWarning):
    """Something about a file or an input that its owner should know; the result is what the input says."""


def note(text: str) -> None:
    """Warn of it at the caller's caller."""
    warnings.warn(text, Note, stacklevel=3)


@contextmanager
def noted(into: list[str]) -> Iterator[None]:
    """Notes made inside go into the list, each once; other warnings go where they would have gone."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Note)
        try:
            yield
        finally:
            into += [text for text in dict.fromkeys(str(w.message) for w in caught if _is_note(w)) if text not in into]
    for other in caught:
        if not _is_note(other):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)


def _is_note(warning: warnings.WarningMessage) -> bool:
    return issubclass(warning.category, Note)
