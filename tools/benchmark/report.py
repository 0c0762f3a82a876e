"""The benchmark's result for a person, in 100 columns, and for a machine."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.ceilings import Beside, Ceilings

WIDTH = 100
BUSY = 0.05
"""Share of the cores that others take from which times are no findings: who waits at each product for a thread that
does not run loses far more than that."""
LIMITS = {"float64": 1e-2, "float32": 1e-2, "bfloat16": 0.2, "float16": 0.2}
"""Distance of the two sides' results from which they cannot be the same computation."""


@dataclass(frozen=True)
class Timed:
    """One side of a row: seconds of each repeat, the bytes one call holds beyond the weights (None: not known), and CPU
    seconds of each repeat, of all threads together."""

    seconds: list[float]
    memory: int | None
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles over the median."""
        if len(self.seconds) < 2:
            return math.nan
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


@dataclass(frozen=True)
class Row:
    """One item in one dtype.

    Args:
        tokens: that one repeat decodes; 1 for everything else.
        theirs: None where transformers has no such item.
        distance: ‖ours − theirs‖ / ‖theirs‖; without a counterpart 0 if our numbers are finite, else NaN.
        bound: the ceiling that `floor`, in seconds of one repeat, follows from: "GEMM", "GEMV", "copy" or "".
        others: share of the cores that other processes took meanwhile; None where that is not known.
        beside: the CPU's rates just before and after; None on a GPU, and where the item is no arithmetic.
    """

    item: str
    dtype: str
    tokens: int
    ours: Timed
    theirs: Timed | None
    distance: float
    bound: str = ""
    floor: float = math.nan
    others: float | None = None
    beside: Beside | None = None

    @property
    def quiet(self) -> bool:
        """Whether its times may be quoted."""
        return self.others is None or self.others < BUSY

    @property
    def agrees(self) -> bool:
        return self.distance <= LIMITS[self.dtype]  # false for NaN

    @property
    def ratio(self) -> float:
        return math.nan if self.theirs is None else self.ours.median / self.theirs.median


@dataclass(frozen=True)
class Result:
    """Everything one command measured.

    Args:
        title: checkpoint, backend and lengths.
        notes: what a reader must know to trust the numbers.
        held: (dtype, bytes of our weights, bytes of transformers').
        warnings: faults other than a row that disagrees.
    """

    title: str
    notes: list[str]
    rows: list[Row]
    ceilings: Ceilings
    held: list[tuple[str, int, int]]
    versions: dict[str, str]
    warnings: list[str]

    @property
    def status(self) -> int:
        """0, or 1 when the two sides do not compute the same."""
        return 0 if self.rows and all(row.agrees for row in self.rows) and not self.warnings else 1


def show(result: Result, console: Console | None = None) -> None:
    console = console or Console(width=WIDTH, highlight=False)
    say = partial(console.print, markup=False)  # a folder's name may have brackets in it
    say(result.title, style="bold")
    for note in result.notes:
        say(f"  {note}")
    for title, table in (
        ("Times: medians, ± half the distance of the quartiles; decode is per token", _times(result.rows)),
        (
            "Load: cores that others took; the CPU's rates before and after; CPU time, waiting threads too",
            _load(result),
        ),
        ("Ceilings: measured here, through our backend", _ceilings(result.ceilings)),
        ("Memory, MiB: the weights, and the most that one call held beyond them", _memory(result)),
    ):
        say(f"\n{title}\n", style="bold")
        console.print(table)
    say("\n" + "; ".join(f"{name} {version}" for name, version in result.versions.items()))
    for warning in _warnings(result):
        say(f"WARNING  {warning}", style="bold red")


def _times(rows: list[Row]) -> Table:
    sides = ("ours\nms", "\n±%", "transformers\nms", "\n±%", "ours /\ntheirs", "tokens/s")
    table = _table(("item", "dtype"), (*sides, "floor\nms", "of the\nceiling", "\ndistance"))
    for row in rows:
        style = None if row.agrees else "bold red"
        table.add_row(row.item, row.dtype, *_side(row, row.ours), *_side(row, row.theirs), *_rest(row), style=style)
    return table


def _side(row: Row, side: Timed | None) -> tuple[str, str]:
    if side is None:
        return "-", ""
    return _figures(side.median / row.tokens * 1e3), "" if math.isnan(side.spread) else f"{side.spread * 100:.0f}"


def _rest(row: Row) -> list[str]:
    speeds = [] if row.tokens == 1 else [side for side in (row.ours, row.theirs) if side is not None]
    return [
        "" if row.theirs is None else f"{row.ratio:.2f}" if row.quiet else "busy",
        " / ".join(f"{row.tokens / side.median:.0f}" for side in speeds),
        "" if math.isnan(row.floor) else _figures(row.floor / row.tokens * 1e3),
        "" if math.isnan(row.floor) else f"{row.floor / row.ours.median:.0%} {row.bound}",
        "" if row.agrees and row.theirs is None else f"{row.distance:.1g}{'' if row.agrees else ' !!'}",
    ]


def _load(result: Result) -> Table:
    table = _table(("item", "dtype"), ("others", "GEMM\nTFLOP/s", "GEMV\nGB/s", "ours\nCPU ms", "theirs\nCPU ms"))
    for row in result.rows:
        rates = ("", "") if row.beside is None else (_pair(row.beside.gemm, 1e12), _pair(row.beside.gemv, 1e9))
        others = "not known" if row.others is None else f"{row.others:.0%}"
        table.add_row(row.item, row.dtype, others, *rates, *(_cpu(row, side) for side in (row.ours, row.theirs)))
    return table


def _pair(rates: tuple[float, float], unit: float) -> str:
    return " - ".join(_figures(rate / unit) for rate in rates)


def _cpu(row: Row, side: Timed | None) -> str:
    return "-" if side is None or not side.cpu else _figures(statistics.median(side.cpu) / row.tokens * 1e3)


def _ceilings(ceilings: Ceilings) -> Table:
    head = (f"GEMM {ceilings.side}³\nTFLOP/s", "GEMV\nGB/s read", "copy\nGB/s read + written")
    table = _table(("dtype",), head)
    for dtype, rate in ceilings.gemm.items():
        table.add_row(dtype, *(_figures(x) for x in (rate / 1e12, ceilings.gemv[dtype] / 1e9, ceilings.copy / 1e9)))
    return table


def _memory(result: Result) -> Table:
    table = _table(("item", "dtype"), ("ours", "transformers"))
    for dtype, ours, theirs in result.held:
        table.add_row("weights", dtype, _mebibytes(ours), _mebibytes(theirs))
    for row in result.rows:
        theirs_beyond = "-" if row.theirs is None else _mebibytes(row.theirs.memory)
        table.add_row(row.item, row.dtype, _mebibytes(row.ours.memory), theirs_beyond)
    return table


def _warnings(result: Result) -> list[str]:
    rows = [
        f"{row.item} in {row.dtype}: distance {row.distance:.2g}, expected at most {LIMITS[row.dtype]:g}: the two "
        "sides do not compute the same thing, so their times say nothing"
        for row in result.rows
        if not row.agrees
    ]
    busy = [
        f"{row.item} in {row.dtype}: others took {row.others:.0%} of the cores: its times are no findings"
        for row in result.rows
        if not row.quiet
    ]
    return rows + busy + result.warnings + ([] if result.rows else ["nothing was measured"])


def _table(left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _figures(value: float) -> str:
    """Three figures, without an exponent from a thousandth up."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _mebibytes(size: int | None) -> str:
    return "not known" if size is None else _figures(size / 2**20) if size else "0"


def as_json(result: Result) -> str:
    """All of it, every repeat included; numbers that JSON cannot hold (NaN, infinity) become strings."""
    document = asdict(result) | {"status": result.status}
    for row, entry in zip(result.rows, document["rows"], strict=True):
        entry["ratio"] = row.ratio if row.quiet and row.theirs is not None else None
    return json.dumps(_plain(document), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
