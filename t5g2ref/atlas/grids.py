"""Attention and masks as drawings: queries down, keys across; the decoder's in two halves, own past and encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5g2ref.atlas import pictures
from t5g2ref.atlas.plots import mask_path, thinned
from t5g2ref.atlas.seen import shrunk
from t5g2ref.numerics import Array

GAP = 16.0
SIDE = 128  # cells of a drawing; more are drawn as the largest of a block
TALL, FEW = 13.0, 40  # a row that a name fits beside, and how many rows are few
LETTERS = 17  # of a name
Labels = list[tuple[float, str]]


@dataclass(frozen=True)
class Half:
    """A part of a drawing: where it begins, how wide it is, and its picture."""

    x: float
    width: float
    address: str
    name: str


@dataclass(frozen=True)
class Grid:
    """A drawing of weights or of a mask.

    Args:
        left, top: the room for names of rows and columns.
        halves: pictures side by side; path: a mask's allowed cells, in place of their pictures.
        shares: of each row, by the right edge: how much of it lies on the encoder.
    """

    name: str
    left: float
    top: float
    width: float
    height: float
    halves: list[Half]
    rows: Labels
    columns: Labels
    shares: Labels
    path: str = ""
    said: str = ""


def weighed(
    name: str, weights: Array, rows: Sequence[str], columns: Sequence[str], own: int | None = None, cell: float = 0
) -> Grid:
    """Weights (rows, keys) as a drawing; `own` keys come first, then the encoder's, where there are two halves."""
    frame = _Frame.of(rows, columns, own, cell, GAP if own is not None else 0)
    cuts = [(0, len(columns), "")] if own is None else [(0, own, "own past"), (own, len(columns), "encoder")]
    halves, top = [], float(weights.max())
    for low, high, said in cuts:
        drawn = shrunk(weights[:, low:high], SIDE, SIDE)
        halves.append(Half(frame.x(low), (high - low) * frame.cell, pictures.strength(drawn, top), said))
    share = [] if own is None else [f"{100 * float(row[own:].sum()):.0f} %" for row in weights]
    return frame.grid(name, halves, thinned(share, frame.tall))


def masked(name: str, mask: Array, rows: Sequence[str], columns: Sequence[str], own: int | None = None) -> Grid:
    """A mask bool (rows, keys) as a drawing."""
    frame = _Frame.of(rows, columns, own, 0, GAP if own is not None else 0)
    path = mask_path(mask, (frame.cell, frame.tall), len(columns) if own is None else own, frame.gap)
    cuts = [(0, len(columns), "")] if own is None else [(0, own, "own past"), (own, len(columns), "encoder")]
    halves = [Half(frame.x(low), (high - low) * frame.cell, "", said) for low, high, said in cuts]
    counts = [int(row.sum()) for row in mask]
    return frame.grid(name, halves, [], path, f"a query sees {min(counts)} to {max(counts)} of {len(columns)} keys")


@dataclass(frozen=True)
class _Frame:
    """Where the cells of a drawing stand."""

    names: Sequence[str]
    columns: Sequence[str]
    own: int
    cell: float
    gap: float
    left: float
    top: float

    @property
    def tall(self) -> float:
        """The height of a row: of few rows so much that each can have its name."""
        return max(self.cell, TALL) if len(self.names) <= FEW else self.cell

    @staticmethod
    def of(rows: Sequence[str], columns: Sequence[str], own: int | None, cell: float, gap: float) -> _Frame:
        cell = cell or min(14.0, max(2.0, 640 / max(len(rows), len(columns))))
        rows, columns = ([cut(name) for name in names] for names in (rows, columns))
        left, top = (7.2 * max((len(name) for name in names), default=1) + 10 for names in (rows, columns))
        return _Frame(rows, columns, len(columns) if own is None else own, cell, gap, left, top + (14 if gap else 0))

    def x(self, column: int) -> float:
        return column * self.cell + (self.gap if column >= self.own else 0)

    def grid(
        self, name: str, halves: list[Half], shares: list[tuple[int, str]], path: str = "", said: str = ""
    ) -> Grid:
        """The drawing with its names; as many of them as have room."""
        half = self.tall / 2
        rows = [(i * self.tall + half, text) for i, text in thinned(self.names, self.tall)]
        columns = [(self.x(i) + self.cell / 2, text) for i, text in thinned(self.columns, self.cell)]
        right = [(i * self.tall + half, text) for i, text in shares]
        width = len(self.columns) * self.cell + self.gap
        height = len(self.names) * self.tall
        return Grid(name, self.left, self.top, width, height, halves, rows, columns, right, path, said)


def cut(name: str) -> str:
    """A name as it stands by a drawing."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def strongest(row: Array, names: Sequence[str], most: int = 4) -> list[tuple[str, float]]:
    """The keys of the largest weights, and these."""
    order = np.argsort(-row, kind="stable")[:most]
    return [(names[int(i)], float(row[int(i)])) for i in order if row[int(i)] > 0]
