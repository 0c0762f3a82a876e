"""Which tokens of a long run are shown and judged: the others only matter as keys and values, which are shown whole.

Between two attentions every operation works on each token by itself. So a token can be judged from the peer's own
values at that token alone, but for attention, which reads the keys and values of all others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5g2ref.taps import Tap

Array = np.ndarray[Any, Any]

READ = ("k_rope", "v_proj", "cross_k_norm", "cross_v_proj")
"""Last parts of the names of taps that attention reads: shown at every token, and judged at the picked ones."""
COPIED = ("keys", "values", "cross_keys", "cross_values")
"""The same as they come to the decoder's attention: shown and judged at every token."""
DOUBLINGS = (4096, 16_384, 32_768, 65_536)  # where a counter, a tile or a table may end
LAST, OTHERS = 4, 16  # tokens at the end, which get logits too, and seeded random ones


@dataclass(frozen=True)
class Picked:
    """Positions of the tokens that are shown and judged, in rising order: (n,) of the source, (m,) of the answer."""

    source: Array
    answer: Array

    def __post_init__(self) -> None:
        for name, positions in (("source", self.source), ("answer", self.answer)):
            if positions.ndim != 1 or (np.diff(positions) <= 0).any() or (positions < 0).any():
                raise ValueError(f"picked.{name}: expected rising positions (n,) from 0 on, found {positions}")
            positions.setflags(write=False)

    def check(self, source: int, answer: int, logits: int | None) -> None:
        """Raises ValueError for rows of these lengths of which none is picked, or one that is not there, or whose last
        positions, of which so many get logits, are not all picked."""
        for name, positions, length in (("source", self.source, source), ("answer", self.answer, answer)):
            if len(positions) > length or (length and not len(positions)) or (positions >= length).any():
                raise ValueError(f"picked.{name}: expected 1 to {length} positions below {length}, found {positions}")
        last = answer if logits is None else min(logits, answer)
        if last and not np.isin(np.arange(answer - last, answer), self.answer).all():
            raise ValueError(f"picked.answer: expected the last {last} positions, which get logits, in {self.answer}")

    def at(self, tap: Tap) -> Array | None:
        """The positions that are judged of this tap; None where all its tokens are."""
        if axis(tap) is None or last_part(tap) in COPIED:
            return None
        return self.source if tap.rows == "encoder" else self.answer


def tokens(length: int, reaches: Iterable[int], rng: np.random.Generator) -> Array:
    """(n,) positions in a row of this length: the first two, those around each reach of a window from either end and
    around DOUBLINGS, the last LAST, and OTHERS that are drawn."""
    marks = [edge + near for reach in reaches for edge in (reach, length - 1 - reach) for near in (-1, 0, 1)]
    marks += [edge + near for edge in DOUBLINGS for near in (-1, 0, 1)]
    marks += [0, 1, *range(length - LAST, length), *rng.choice(length, min(OTHERS, length), replace=False)]
    return np.array(sorted({int(mark) for mark in marks if 0 <= mark < length}), np.int64)


def last_part(tap: Tap) -> str:
    return tap.name.rsplit(".", 1)[-1]


def axis(tap: Tap) -> int | None:
    """The axis of a text stack's tap that counts tokens; None for a tap of other tokens. Of a mask it is the queries'.

    Logits are of the last positions, which are picked in any case.
    """
    letters = tap.shape.split()
    if tap.rows in ("all", "logits") or not {"T", "S"} & set(letters):
        return None
    return letters.index("T" if "T" in letters else "S")


def whole(tap: Tap) -> bool:
    """Whether a peer shows the tap at every token."""
    return axis(tap) is None or last_part(tap) in READ + COPIED


def shown(picked: Picked | None, tap: Tap, value: Any) -> Any:
    """Of a tap's value at every token, what a peer shows: a copy of the picked ones, or the value itself."""
    positions = None if picked is None or whole(tap) else picked.at(tap)
    return value if positions is None else _taken(value, positions, axis(tap))


def judged(picked: Picked | None, tap: Tap, value: Any) -> Any:
    """Of what a peer shows, what is judged. A value that is too short is left as it is; see `misread`."""
    positions = None if picked is None or last_part(tap) not in READ else picked.at(tap)
    return value if positions is None else _taken(value, positions, axis(tap))


def _taken(value: Any, positions: Array, at: int | None) -> Any:
    if at is None or at >= value.ndim or not len(positions) or value.shape[at] <= positions[-1]:
        return value
    return value[(slice(None),) * at + (positions.tolist(),)]  # a list serves every array library
