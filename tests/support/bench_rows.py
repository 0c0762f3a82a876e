"""Results of a benchmark made by hand, for tests of what is said of them."""

from __future__ import annotations

import sys
from typing import Any

from processes import ROOT

if (tools := str(ROOT / "tools")) not in sys.path:
    sys.path.append(tools)

from benchmark.ceilings import Ceilings
from benchmark.result import Column, Result, Row, Timed

COLUMNS = (
    Column("numpy", "ours", "t5g2ref on numpy"),
    Column("sdpa", "transformers", "transformers, sdpa attention"),
    Column("ctranslate2", "engine", "CTranslate2"),
)


def timed(milliseconds: float = 11.0, distance: float = 1e-6, memory: int | None = 3 << 20) -> Timed:
    """A side whose median is that; its repeats are a millisecond apart."""
    return Timed([(milliseconds + off) / 1e3 for off in (0, 1, -1, 2, -2)], memory, [0.02] * 5, distance)


def row(item: str = "encode", dtype: str = "float32", **changes: Any) -> Row:
    """Ours and transformers' at 11 ms, over a floor of 6 ms of operations."""
    sides = {"numpy": timed(), "sdpa": timed(distance=0.0)}
    values: dict[str, Any] = {"source": 512, "batch": 1, "steps": 1, "sides": sides, "reference": "sdpa"}
    values |= {"operations": 6_000_000, "bytes": 2_000_000, "computing": 0.006, "moving": 0.002}
    return Row(item, dtype, **values | changes)


def result(*rows: Row, columns: tuple[Column, ...] = COLUMNS, **changes: Any) -> Result:
    ceilings = Ceilings(8192, {"float32": 51e12, "bfloat16": 765e12}, {"float32": 3.9e12, "bfloat16": 3.8e12}, 4.27e12)
    values: dict[str, Any] = {
        "title": "t: source 512",
        "machine": "a processor, 2 cores",
        "notes": ["weights: those of /a/folder/with [brackets]"],
        "columns": list(columns),
        "rows": list(rows),
        "ceilings": ceilings,
        "held": [("float32", {"numpy": 4 << 30, "sdpa": 4 << 30})],
        "versions": {"processor": "a name that is long enough to be wrapped at the end of a line " * 2},
        "remarks": [],
        "warnings": [],
    }
    return Result(**values | changes)
