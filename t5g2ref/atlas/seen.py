"""What is kept of a tap's value: its shape, its size, and a small picture's worth of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from t5g2ref.atlas.places import Place
from t5g2ref.numerics import Array
from t5g2ref.taps import Tap

ROWS, COLUMNS = 16, 64  # of the small picture
SHOWN = 3  # numbers


@dataclass(frozen=True)
class Seen:
    """A tap's value in short.

    Args:
        name, letters, shape: of the tap.
        place: the line that made it.
        rms: the root of its mean square; of a mask, the share that is allowed.
        least, most: its extremes.
        first: its first numbers.
        small: at most (16, 64) numbers, rows being tokens: of each block the one that is farthest from 0.
    """

    name: str
    letters: str
    shape: tuple[int, ...]
    place: Place
    rms: float
    least: float
    most: float
    first: tuple[float, ...]
    small: Array

    @property
    def exact(self) -> bool:
        """A mask: yes or no."""
        return self.name.endswith(".mask")


def seen(tap: Tap, value: Array, place: Place) -> Seen:
    """The value in short."""
    numbers = np.asarray(value, dtype=np.float64)
    rms = float(numbers.mean() if tap.exact else np.sqrt((numbers**2).mean()))
    first = tuple(float(x) for x in numbers.reshape(-1)[:SHOWN])
    least, most = float(numbers.min()), float(numbers.max())
    small = shrunk(np.nan_to_num(flat(numbers, tap.shape)), ROWS, COLUMNS)
    return Seen(tap.name, tap.shape, tuple(numbers.shape), place, rms, least, most, first, small)


def flat(numbers: Array, letters: str) -> Array:
    """(tokens, channels): heads side by side, rows or pictures one below the other."""
    if letters.split()[1:2] in (["N"], ["K"]):  # (B, N, T, H) → (B, T, N, H)
        numbers = numbers.swapaxes(1, 2)
        return numbers.reshape(numbers.shape[0] * numbers.shape[1], -1)
    return numbers.reshape(-1, numbers.shape[-1])


def shrunk(numbers: Array, rows: int, columns: int) -> Array:
    """At most (rows, columns): of each block the number that is farthest from 0."""
    high, low = (_blocks(_blocks(numbers, rows, 0, by), columns, 1, by) for by in (np.maximum, np.minimum))
    return np.where(high >= -low, high, low)


def _blocks(numbers: Array, most: int, axis: int, by: Any) -> Array:
    length = numbers.shape[axis]
    starts = np.arange(min(most, length)) * length // min(most, length)
    return by.reduceat(numbers, starts, axis=axis)


def sizes(value: Array) -> Array:
    """The root mean square of each token: (…, D) → (tokens,) float64."""
    numbers = np.asarray(value, dtype=np.float64)
    found: Array = np.nan_to_num(np.sqrt((numbers**2).mean(axis=-1)).reshape(-1), posinf=1e38)
    return found
