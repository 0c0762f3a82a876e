"""Masks are rules over absolute positions in the padded row, evaluated for the block of queries in hand.

Every rule of this model is a band: query q may see key k when q − back ≤ k ≤ q + ahead. A side that is None is
unbounded. Padding is a second, independent condition on the key. No S × S array is ever needed.

A caller may give a mask of his own instead. It is a rule, too: one that is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from t5g2ref.config import TextConfig
from t5g2ref.numerics import Array


@dataclass(frozen=True)
class Band:
    """Keys from `back` behind the query to `ahead` in front of it, both inclusive; None is no bound."""

    by_distance: ClassVar[bool] = True  # the two bounds are the whole rule, which a kernel may rely on
    back: int | None = None
    ahead: int | None = None

    def allows(self, queries: Array, keys: Array) -> Array:
        """bool (T, S) for absolute positions queries (T,) and keys (S,); the same in every row of the batch."""
        distance = keys[None, :] - queries[:, None]
        allowed = distance == distance
        if self.back is not None:
            allowed &= distance >= -self.back
        if self.ahead is not None:
            allowed &= distance <= self.ahead
        return allowed

    def span(self, first: int, last: int, keys: int) -> tuple[int, int]:
        """Half-open range of keys out of [0, keys) that queries first … last (inclusive) can reach."""
        low = 0 if self.back is None else max(0, first - self.back)
        high = keys if self.ahead is None else min(keys, last + self.ahead + 1)
        return min(low, high), high


EVERYTHING = Band()


@dataclass(frozen=True, eq=False, kw_only=True)
class Given(Band):
    """A mask that was made by the caller, in the place of a band and of padding.

    Args:
        mask: bool (B or 1, T, S), whether query t may see key s. Its keys are counted from position 0 on.
        first: the absolute position of its first query.
    """

    by_distance: ClassVar[bool] = False
    mask: Array
    first: int = 0

    def allows(self, queries: Array, keys: Array) -> Array:
        """bool (B or 1, T, S) for absolute positions queries (T,) and keys (S,)."""
        return self.mask[:, queries[:, None] - self.first, keys[None, :]]


NONE_GIVEN: Mapping[str, Given] = MappingProxyType({})


def encoder_band(config: TextConfig, layer_type: str) -> Band:
    """Bidirectional; a sliding layer sees W keys in all, the odd one to the right when W is even.

    W = 3, then W = 4, six positions (row: query, column: key):

        xx....    xxx...
        xxx...    xxxx..
        .xxx..    .xxxx.
        ..xxx.    ..xxxx
        ...xxx    ...xxx
        ....xx    ....xx

    Source: observed masks of transformers 5.23 (its `sliding_window_mask_function`).
    """
    window = config.window(layer_type)
    return EVERYTHING if window is None else Band((window + 1) // 2 - 1, window // 2)


def decoder_band(config: TextConfig, layer_type: str) -> Band:
    """Causal; a sliding layer sees the query's own key and the W − 1 before it. The cross half has no band.

    W = 3, then no window:

        x.....    x.....
        xx....    xx....
        xxx...    xxx...
        .xxx..    xxxx..
        ..xxx.    xxxxx.
        ...xxx    xxxxxx
    """
    window = config.window(layer_type)
    return Band(None if window is None else window - 1, 0)
