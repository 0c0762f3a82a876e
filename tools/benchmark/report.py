"""The benchmark's result for a person: tables whose rows are items and whose columns are sides."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table

from benchmark.ceilings import Ceilings
from benchmark.result import FAILED, LIMITS, Result, Row

WIDTH, WIDER = 100, 150
MANY = 5  # columns that WIDTH has room for
LACKING = "-"
Cell = Callable[[Row, str], str]


def show(result: Result, console: Console | None = None) -> None:
    console = console or Console(width=WIDTH if len(result.columns) <= MANY else WIDER, highlight=False)
    say = partial(console.print, markup=False)  # a folder's name may have brackets in it
    say(result.title, style="bold")
    for note in (*result.notes, *(f"{column.name}: {column.what}" for column in result.columns)):
        say(f"  {note}")
    for title, table in _tables(result):
        say(f"\n{title}\n", style="bold")
        console.print(table)
    say("\n" + "; ".join(f"{name} {version}" for name, version in result.versions.items()))
    for remark in (*result.remarks, *_differing(result)):
        say(f"NOTE  {remark}")
    for warning in _warnings(result):
        say(f"WARNING  {warning}", style="bold red")


def _tables(result: Result) -> list[tuple[str, Table]]:
    names = [column.name for column in result.columns]
    bounded = [row for row in result.rows if row.bound]
    decoded = [row for row in result.rows if row.item == "decode"]
    tables = [
        ("Times, ms: medians, ± half the distance of the quartiles in %; decode is per step", _by_side(result, _time)),
        ("Ours over theirs: below 1 ours is faster", _ratios(result)),
        ("Floors, ms: operations and bytes at the rates measured here; the greater over a side's time", _floors(result))
        if bounded
        else None,
        ("Tokens per second, of all rows", _by_side(result, _speed, decoded)) if decoded else None,
        ("Distance of the results from those of the reference, ref", _by_side(result, _distance)),
        ("Memory, MiB: the weights, and the most that one call held beyond them", _memory(result)),
        ("CPU time, ms, of all threads, waiting ones too; cores that others took", _by_side(result, _cpu, others=True)),
        ("Rates of the CPU before and after", _beside(result)) if any(row.beside for row in result.rows) else None,
        ("Ceilings: measured here, through our backend", _ceilings(result.ceilings)) if result.ceilings.gemm else None,
    ]
    return [(title, table) for title, table in filter(None, tables) if names]


def _by_side(result: Result, cell: Cell, rows: list[Row] | None = None, *, others: bool = False) -> Table:
    """A cell for each row and column."""
    names = [column.name for column in result.columns]
    table = _table(("item", "dtype"), ("source", "batch", *names, *(["others"] if others else [])))
    for row in result.rows if rows is None else rows:
        cells = [cell(row, name) if name in row.sides else _lacking(row, name) for name in names]
        share = "not known" if row.others is None else f"{row.others:.0%}"
        agree = all(row.agrees(name) for one, name in result.judged if one is row)
        table.add_row(*_left(row), *cells, *([share] if others else []), style=None if agree else "bold red")
    return table


def _left(row: Row) -> tuple[str, str, str, str]:
    return row.item, row.dtype, str(row.source or ""), str(row.batch)


def _lacking(row: Row, name: str) -> str:
    """Why it lacks another time is said once, below the tables."""
    return FAILED if row.lacks.get(name) == FAILED else LACKING


def _time(row: Row, name: str) -> str:
    side = row.sides[name]
    spread = "" if math.isnan(side.spread) else f" ±{side.spread * 100:.0f}"
    return f"{_figures(side.median / row.steps * 1e3)}{spread}"


def _speed(row: Row, name: str) -> str:
    return f"{row.steps * row.batch / row.sides[name].median:.0f}"


def _distance(row: Row, name: str) -> str:
    if name == row.reference:
        return "ref" if row.agrees(name) else "not finite !!"
    return f"{row.sides[name].distance:.1g}{'' if row.agrees(name) else ' !!'}"


def _cpu(row: Row, name: str) -> str:
    cpu = row.sides[name].cpu
    return _figures(statistics.median(cpu) / row.steps * 1e3) if cpu else LACKING


def _ratios(result: Result) -> Table:
    theirs = list(dict.fromkeys(theirs for _, theirs in result.pairs))
    table = _table(("item", "dtype"), ("source", "batch", "ours", *theirs))
    for row in result.rows:
        for ours in (name for name in result.named("ours") if name in row.sides):
            if any(name in row.sides for name in theirs):
                table.add_row(*_left(row), ours, *(_ratio(row, ours, name) for name in theirs))
    return table


def _ratio(row: Row, ours: str, theirs: str) -> str:
    ratio = row.ratio(ours, theirs)
    if math.isnan(ratio):
        return "differs" if theirs in row.sides else _lacking(row, theirs)
    return f"{ratio:.2f}" if row.quiet else "busy"


def _floors(result: Result) -> Table:
    names = [column.name for column in result.columns]
    table = _table(("item", "dtype"), ("source", "batch", "opera-\ntions", "\nbytes", *(f"\n{name}" for name in names)))
    for row in (row for row in result.rows if row.bound):
        floors = (_figures(seconds / row.steps * 1e3) for seconds in (row.computing, row.moving))
        table.add_row(*_left(row), *floors, *(_reached(row, name) for name in names))
    return table


def _reached(row: Row, name: str) -> str:
    reached = row.reached(name)
    if math.isnan(reached):
        return "differs" if name in row.sides else _lacking(row, name)
    return f"{reached:.0%}" if row.quiet else "busy"


def _memory(result: Result) -> Table:
    names = [column.name for column in result.columns]
    table = _table(("item", "dtype"), ("source", "batch", *names))
    for dtype, held in result.held:
        table.add_row(
            "weights", dtype, "", "", *(_mebibytes(held[name]) if name in held else LACKING for name in names)
        )
    for row in result.rows:
        sides = (row.sides.get(name) for name in names)
        table.add_row(*_left(row), *(LACKING if side is None else _mebibytes(side.memory) for side in sides))
    return table


def _beside(result: Result) -> Table:
    table = _table(("item", "dtype"), ("source", "batch", "GEMM\nTFLOP/s", "GEMV\nGB/s"))
    for row in result.rows:
        if row.beside is not None:
            table.add_row(*_left(row), _pair(row.beside.gemm, 1e12), _pair(row.beside.gemv, 1e9))
    return table


def _pair(rates: tuple[float, float], unit: float) -> str:
    return " - ".join(_figures(rate / unit) for rate in rates)


def _ceilings(ceilings: Ceilings) -> Table:
    head = (f"GEMM {ceilings.side}³\nTFLOP/s", "GEMV\nGB/s read", "copy\nGB/s read + written")
    table = _table(("dtype",), head)
    for dtype, rate in ceilings.gemm.items():
        table.add_row(dtype, *(_figures(x) for x in (rate / 1e12, ceilings.gemv[dtype] / 1e9, ceilings.copy / 1e9)))
    return table


def _differing(result: Result) -> list[str]:
    """Engines that compute something else: their own affair, but their times stand beside ours."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in result.rows:
        for name in (name for name in result.named("engine") if name in row.sides and not row.agrees(name)):
            found.setdefault((name, row.item, row.dtype), []).append(row)
    return [
        f"{name} computes something else, so it has no ratio: {'; '.join(row.name for row in rows)}: distance "
        f"{_span([row.sides[name].distance for row in rows], '.2g')}, expected at most {LIMITS[dtype]:g}"
        for (name, _, dtype), rows in found.items()
    ]


def _span(values: list[float], form: str) -> str:
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _warnings(result: Result) -> list[str]:
    rows = [
        f"{row.name}: {name} has distance {row.sides[name].distance:.2g}, expected at most {LIMITS[row.dtype]:g}: the "
        "sides do not compute the same thing, so their times say nothing"
        for row, name in result.judged
        if not row.agrees(name)
    ]
    busy = [row for row in result.rows if not row.quiet]
    if busy:
        share = _span([row.others for row in busy if row.others is not None], ".0%")
        rows.append(
            f"others took {share} of the cores, so these are no findings: {'; '.join(row.name for row in busy)}"
        )
    unfinished = [] if result.complete else ["interrupted: what comes after the last row was not measured"]
    return rows + result.warnings + unfinished + ([] if result.rows else ["nothing was measured"])


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
