"""The picture of a mask, expected and found in one, in numbers. The template writes the SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CELL, GAP = 11, 1  # pixels of a cell, and of the gap within it
EDGE, HEAD = 34, 22  # pixels on the left and on top, for numbers
LARGEST = 72  # rows and columns that are drawn at most


@dataclass(frozen=True)
class Mask:
    """A mask, expected and found in one picture, as SVG paths and numbered ticks.

    Args:
        both, neither: cells that both let through, or neither does.
        extra, missing: cells that only the peer lets through, or only the rule does; `…_marks` lie on them.
        columns, rows: (place, number) of ticks.
        counts: how many cells are extra and missing.
        cut: whether a part of the mask is left out.
    """

    width: int
    height: int
    both: str
    neither: str
    extra: str
    missing: str
    extra_marks: str
    missing_marks: str
    columns: list[tuple[float, int]]
    rows: list[tuple[float, int]]
    counts: tuple[int, int]
    cut: bool


def mask(expected: Sequence[str], found: Sequence[str], first: int | None = 0) -> Mask:
    """The picture of two drawings of one mask. Each has a string a query and a character a key, "x" if let through.

    `first` is the number of the first query; with None, no query is numbered.
    """
    height = max(len(expected), len(found))
    width = max((len(row) for row in (*expected, *found)), default=0)
    across, down = min(width, LARGEST), min(height, LARGEST)
    cells: dict[tuple[bool, bool], list[tuple[int, int]]] = {}
    for q in range(down):
        for k in range(across):
            cells.setdefault((_on(expected, q, k), _on(found, q, k)), []).append((k, q))
    extra, missing = cells.get((False, True), []), cells.get((True, False), [])
    return Mask(
        EDGE + across * CELL,
        HEAD + down * CELL,
        _squares(cells.get((True, True), [])),
        _squares(cells.get((False, False), [])),
        _squares(extra),
        _squares(missing),
        "".join(f"M{x + 2} {y + 2}l6 6m0 -6l-6 6" for x, y in map(_corner, extra)),
        "".join(f"M{x + 2} {y + 5}h6" for x, y in map(_corner, missing)),
        [(EDGE + (k + 0.45) * CELL, k) for k in range(0, across, 5)],
        [] if first is None else [(HEAD + (q + 0.75) * CELL, first + q) for q in range(0, down, 5)],
        (len(extra), len(missing)),
        (across, down) != (width, height),
    )


def _on(drawing: Sequence[str], q: int, k: int) -> bool:
    return q < len(drawing) and drawing[q][k : k + 1] == "x"


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    return EDGE + place[0] * CELL, HEAD + place[1] * CELL


def _squares(places: list[tuple[int, int]]) -> str:
    """One SVG path of squares; neighbours in a row are one run."""
    size = CELL - GAP
    path, last = [], (-9, -9)
    for k, q in places:
        x, y = _corner((k, q))
        step = f"m{CELL} 0" if (k - 1, q) == last else f"M{x} {y}"
        path.append(f"{step}h{size}v{size}h-{size}z")
        last = (k, q)
    return "".join(path)
