"""Checks the layouts that a dump declares for its arrays, and undoes them.

A layout is a line of axes in the letters of the package's legend, as in the table of taps. "B T N*H" has one merged
axis, "B T N H" has the heads apart. `valid` stands for both token axes of a tap (B and T, or B and S) where padding was
left out: "valid D". A layout is declared, never guessed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.cases.plan import axes_of, lengths_of, shape_of
from t5g2ref.taps import Tap

Array = np.ndarray[Any, Any]
VALID = "valid"


class LayoutError(ValueError):
    """The declared layout is no layout of this tap, or the array does not have it."""


def check(declared: str, tap: Tap) -> None:
    """Raises LayoutError unless `declared` has each letter of the tap once (`valid` for both token axes)."""
    given = [letter for axis in axes_of(declared) for letter in axis]
    wanted = [letter for axis in axes_of(tap.shape) for letter in axis]
    if VALID in given:
        tokens = _tokens(tap)
        if len(tokens) != 2 or tap.rows == "all":
            raise LayoutError(f"{tap.name} ({tap.shape}) has no padding to leave out; declare it without {VALID!r}")
        wanted = [VALID, *(letter for letter in wanted if letter not in tokens)]
    if sorted(given) != sorted(wanted):
        raise LayoutError(f"{tap.name} is declared as {declared!r}, expected each of {' '.join(wanted)} once")


def arranged(array: Array, declared: str, tap: Tap, lengths: dict[str, int], keep: Array | None) -> Array:
    """The array, brought from the layout `declared` into the table's.

    Args:
        keep: bool over the two token axes, False on padding (`plan.validity`); None for no padding. Tokens that a
            `valid` layout leaves out become zeros, which nothing valid reads.

    Raises:
        LayoutError: the array's shape is not what `declared` says.
    """
    check(declared, tap)
    axes, letters = axes_of(declared), [letter for axis in axes_of(declared) for letter in axis]
    if VALID in letters:
        first, second = _tokens(tap)
        keep = np.ones((lengths[first], lengths[second]), bool) if keep is None else keep
        lengths = lengths | {VALID: int(keep.sum())}
    expected = lengths_of(axes, lengths)
    if array.shape != expected:
        raise LayoutError(f"declared as {declared or 'a scalar'} = {expected}, found {array.shape}")
    apart = array.reshape([lengths[letter] for letter in letters])
    if keep is not None and VALID in letters:
        apart = np.moveaxis(apart, letters.index(VALID), 0)
        whole = np.zeros((*keep.shape, *apart.shape[1:]), apart.dtype)
        whole[keep] = apart
        letters, apart = [first, second, *(letter for letter in letters if letter != VALID)], whole
    order = [letters.index(letter) for axis in axes_of(tap.shape) for letter in axis]
    return np.ascontiguousarray(apart.transpose(order)).reshape(shape_of(tap, lengths))


def _tokens(tap: Tap) -> list[str]:
    axes = tap.shape.split()
    return [axes[axis] for axis in tap.token_axes]
