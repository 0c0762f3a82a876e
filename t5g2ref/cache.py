"""The decoder's memory: an explicit value that its caller advances. Nothing here is changed in place.

Per layer the keys and values of the decoder's own past (after k_norm and RoPE), and those of the encoder's output,
projected once per source. A sliding layer keeps the last W − 1 positions: with the new ones that is all it can see.
The cross half is always kept whole: no window ever lies over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from t5g2ref.numerics import Array, Numerics


@dataclass(frozen=True)
class KeyValue:
    """keys and values, both (B, K, S, H); `start` is the absolute position of the first key."""

    keys: Array
    values: Array
    start: int = 0

    @property
    def length(self) -> int:
        return int(self.keys.shape[2])

    def extended(self, nx: Numerics, keys: Array, values: Array) -> KeyValue:
        """These and the new positions behind them."""
        return KeyValue(nx.join([self.keys, keys], 2), nx.join([self.values, values], 2), self.start)

    def last(self, count: int | None) -> KeyValue:
        """The last `count` positions (all when None)."""
        drop = 0 if count is None else max(0, self.length - count)
        return KeyValue(self.keys[:, :, drop:], self.values[:, :, drop:], self.start + drop)

    def reordered(self, rows: Array) -> KeyValue:
        return KeyValue(self.keys[rows], self.values[rows], self.start)


@dataclass(frozen=True)
class Cache:
    """What a decoder step needs of everything before it.

    Args:
        own: a KeyValue per layer of the decoder's past.
        cross: a KeyValue per layer of the encoder's output.
        valid: bool (B, length), False where a past decoder position is padding.
        cross_valid: bool (B, S_enc), False where an encoder position is padding.
    """

    own: tuple[KeyValue, ...]
    cross: tuple[KeyValue, ...]
    valid: Array
    cross_valid: Array

    @property
    def length(self) -> int:
        """Decoder positions seen so far: the absolute index of the next one."""
        return int(self.valid.shape[1])

    @property
    def batch(self) -> int:
        return int(self.valid.shape[0])

    def advanced(self, own: Sequence[KeyValue], valid: Array) -> Cache:
        """The cache after a call: new per-layer keys and values, and the validity of all positions so far."""
        return replace(self, own=tuple(own), valid=valid)

    def reordered(self, rows: Array) -> Cache:
        """Row b of the result is row rows[b] of this: both halves, as a beam search needs."""
        return Cache(
            tuple(kv.reordered(rows) for kv in self.own),
            tuple(kv.reordered(rows) for kv in self.cross),
            self.valid[rows],
            self.cross_valid[rows],
        )
