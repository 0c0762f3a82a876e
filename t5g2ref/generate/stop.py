"""Where a row ends: at an id, behind a text, or at a number of new ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5g2ref.config import Config
from t5g2ref.config.fields import short
from t5g2ref.generate.rules import is_count, require
from t5g2ref.numerics import Array, Numerics

MOST_NEW = 1 << 20
Decode = Callable[[list[int]], str]
"""The text of a row's new ids."""


@dataclass(frozen=True)
class Ends:
    """What ends a row. What ends it is part of it.

    Args:
        ids: each ends a row.
        strings: each ends a row whose new ids' text has it; `decode` gives that text.
        least: no id and no string ends a row before it has so many new ids.
        most: every row ends with so many new ids.
    """

    ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()
    decode: Decode | None = None
    least: int = 0
    most: int = 64

    def __post_init__(self) -> None:
        """ValueError for a setting that has no meaning."""
        if not is_count(self.most, 1):
            raise ValueError(f"max_new_tokens: expected at least 1, found {short(self.most)}")
        require(self.most <= MOST_NEW, "max_new_tokens", f"at most {MOST_NEW}", self.most)
        most = f"an integer from 0 to max_new_tokens ({self.most})"
        require(is_count(self.least, 0) and self.least <= self.most, "min_new_tokens", most, self.least)
        whole = all(isinstance(s, str) and s for s in self.strings)
        require(whole, "stop_strings", "texts, none of them empty", self.strings)
        if self.strings and self.decode is None:
            raise ValueError("stop_strings: expected decode beside them, which makes the text of ids; found none")

    @property
    def may_come(self) -> bool:
        """Whether a row can end before its most ids."""
        return bool(self.ids or self.strings)

    def end(self, new: Sequence[int]) -> bool:
        """Whether a row with these new ids, one at least, has ended. It is asked after every id."""
        if len(new) >= self.most:
            return True
        return len(new) >= self.least and (new[-1] in self.ids or self._said(new))

    def ended(self, nx: Numerics, new: Array) -> Array:
        """bool (B,): whether rows of new ids (B, T) end with the last of them, by an id or a string.

        Strings need the ids on the host; ids alone make no device wait.
        """
        xp = nx.xp
        found = xp.zeros(len(new), dtype=bool)
        if new.shape[1] < self.least:
            return found
        for token in self.ids:
            found = found | (new[:, -1] == token)
        if self.strings:
            found = found | xp.asarray(np.array([self._said(row) for row in nx.backend.host(new)]))
        return found

    def _said(self, new: Any) -> bool:
        """Whether the text of these new ids has one of the strings."""
        if not self.strings or self.decode is None:
            return False
        text = self.decode([int(i) for i in new])
        return any(string in text for string in self.strings)


def end_ids(config: Config, stop: Sequence[int] | None) -> tuple[int, ...]:
    """The given ids, or the configuration's; ValueError for one outside of the vocabulary."""
    ends = tuple(config.decoder.eos_token_id if stop is None else stop)
    size = config.decoder.vocab_size
    if wrong := [end for end in ends if not is_count(end, 0) or end >= size]:
        raise ValueError(f"stop: ids must lie in [0, {size}), found {short(wrong[0])}, which no row would ever have")
    return ends
