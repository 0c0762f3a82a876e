"""The geometry of the page's drawings: where lines, marks and letters stand. How they look is the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5g2ref.numerics import Array

ROW = 14  # of a mark's name
LARGE = 10.0  # a cell whose edges can be seen
Mark = tuple[float, str]  # where, and its letters


@dataclass(frozen=True)
class Depth:
    """Sizes along depth: for each point the median token, and the least and the largest as a band."""

    width: float
    height: float
    line: str
    band: str
    points: list[tuple[float, float, str]]
    ticks: list[Mark]
    labels: list[Mark]


def depth(names: Sequence[str], sizes: Sequence[Array], *, height: float = 190) -> Depth:
    """A logarithmic axis upwards, and a point for each tap to the right."""
    logs = [np.log10(np.maximum(each, 1e-12)) for each in sizes]
    least = math.floor(min(float(each.min()) for each in logs))
    most = max(math.ceil(max(float(each.max()) for each in logs)), least + 1)
    step = 46 if len(names) <= 12 else 26
    left, top, bottom = 52.0, 10.0, height - 58

    def up(value: float) -> float:
        return round(bottom - (value - least) / (most - least) * (bottom - top), 1)

    across = [left + 14 + i * step for i in range(len(names))]
    middle = [float(np.median(each)) for each in logs]
    line = "M" + "L".join(f"{x:g} {up(y)}" for x, y in zip(across, middle, strict=True))
    over = [f"{x:g} {up(float(each.max()))}" for x, each in zip(across, logs, strict=True)]
    under = [f"{x:g} {up(float(each.min()))}" for x, each in zip(across, logs, strict=True)]
    said = [f"{name}: median {10**y:.3g}" for name, y in zip(names, middle, strict=True)]
    points = [(x, up(y), text) for x, y, text in zip(across, middle, said, strict=True)]
    ticks = [(up(y), f"{10.0**y:g}") for y in range(least, most + 1, max(1, (most - least) // 6))]
    labels = list(zip(across, names, strict=True))
    return Depth(across[-1] + 30, height, line, "M" + "L".join([*over, *under[::-1]]) + "z", points, ticks, labels)


@dataclass(frozen=True)
class Strip:
    """The wavelengths of one layer type: a tick for each plane, in words too."""

    name: str
    y: float
    ticks: str
    said: str


@dataclass(frozen=True)
class Waves:
    """Wavelengths on a logarithmic axis of tokens."""

    width: float
    height: float
    strips: list[Strip]
    axis: list[Mark]
    marks: list[Mark]


def waves(found: dict[str, Array], marks: dict[str, int]) -> Waves:
    """A strip for each layer type with the wavelengths (H/2,), in tokens; marks are lengths to compare them with."""
    every = np.concatenate(list(found.values()))
    most = math.ceil(math.log10(max(float(every.max()), *marks.values())))
    left, width, room, top = 10.0, 720.0, 46.0, 26.0 + ROW * len(marks)

    def across(tokens: float) -> float:
        return round(left + math.log10(max(tokens, 1.0)) / most * (width - 2 * left), 1)

    strips = []
    for i, (name, lengths) in enumerate(found.items()):
        y = top + i * room
        ticks = "".join(f"M{across(float(x))} {y + 14}v14" for x in lengths)
        said = f"{len(lengths)} planes, {float(lengths.min()):.3g} to {float(lengths.max()):.3g} tokens a turn"
        strips.append(Strip(name, y, ticks, said))
    axis = [(across(10.0**power), _power(power)) for power in range(most + 1)]
    guides = [(across(n), f"{name}: {n:,}") for name, n in marks.items()]
    return Waves(width, top + len(found) * room + 26, strips, axis, guides)


def _power(power: int) -> str:
    """A power of ten, as 100 k."""
    return f"{10 ** (power % 3)} {('', 'k', 'M', 'G', 'T')[min(power // 3, 4)]}".rstrip()


def mask_path(mask: Array, cell: tuple[float, float], gap_at: int, gap: float) -> str:
    """What is allowed: a box a cell, or a bar a run of small ones.

    cell: its width and height. Columns from `gap_at` on stand `gap` farther to the right.
    """
    if min(cell) >= LARGE:
        found = ((int(row), int(k)) for row, k in np.argwhere(mask))
        return "".join(_bar(row, k, k + 1, cell, gap if k >= gap_at else 0, 1) for row, k in found)
    parts = []
    for row, allowed in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], allowed.astype(np.int8), [0]])))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            for low, high in ((start, min(end, gap_at)), (max(start, gap_at), end)):
                if low < high:
                    parts.append(_bar(row, int(low), int(high), cell, gap if low >= gap_at else 0, 0))
    return "".join(parts)


def _bar(row: int, low: int, high: int, cell: tuple[float, float], shift: float, inset: float) -> str:
    """A rectangle over the columns low … high of a row."""
    width, height = (high - low) * cell[0] - inset, cell[1] - inset
    return f"M{low * cell[0] + shift:g} {row * cell[1]:g}h{width:g}v{height:g}h{-width:g}z"


def thinned(names: Sequence[str], cell: float, least: float = 11) -> list[tuple[int, str]]:
    """(index, name) of as many names as have room, `least` apart."""
    every = max(1, math.ceil(least / cell))
    return [(i, name) for i, name in enumerate(names) if i % every == 0]
