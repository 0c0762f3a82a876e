"""The benchmark's result for a machine: JSON with a version of its schema.

A row has each repeat's seconds by side, what it must compute and move, and the seconds that this takes at the rates
measured here. `ratios` and `reached` (the floor over a side's median) are null where the machine was busy and where the
sides did not compute the same: there they are no findings. Numbers that JSON cannot hold are the strings "nan", "inf"
and "-inf". While the command runs, and after it was interrupted, `complete` is false and `status` null.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from benchmark.result import Result, Row

SCHEMA = 1
"""Raised when a field changes its meaning or goes; a new field leaves it."""


def as_json(result: Result) -> str:
    """All of it, every repeat included."""
    held = [{"dtype": dtype, "bytes": sizes} for dtype, sizes in result.held]
    document = (
        {"schema": SCHEMA, "tool": "bench"}
        | asdict(result)
        | {"held": held, "status": result.status if result.complete else None}
    )
    for row, entry in zip(result.rows, document["rows"], strict=True):
        entry |= _said(result, row)
    return json.dumps(_plain(document), indent=1, allow_nan=False) + "\n"


def _said(result: Result, row: Row) -> dict[str, Any]:
    """What follows from a row's numbers."""
    ratios = [{"ours": ours, "theirs": theirs, "ratio": row.ratio(ours, theirs)} for ours, theirs in result.pairs]
    reached = {name: row.reached(name) for name in row.sides}
    return {
        "busy": not row.quiet,
        "floor": row.floor,
        "bound": row.bound,
        "agrees": {name: row.agrees(name) for name in row.sides},
        "ratios": [one | {"ratio": _finding(row, one["ratio"])} for one in ratios],
        "reached": {name: _finding(row, fraction) for name, fraction in reached.items()},
    }


def _finding(row: Row, value: float) -> float | None:
    return value if row.quiet and not math.isnan(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
