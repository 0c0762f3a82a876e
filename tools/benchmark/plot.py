"""A picture of time and memory against the source's length: a line a side, over what the machine allows at most."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmark.options import LONG
from benchmark.result import Result, Row
from t5g2ref.files import replacing

INK, PALE = "#222222", "#777777"
COLOURS = ("#0063a6", "#00a3b5", "#c1481b", "#8a5a00", "#7a3e9d", "#b0306a")  # of the columns; blue for ours
MARKS = "osD^vP"
WIDE, HIGH = 3.6, 2.7  # inches of a panel
GAP = 0.065  # of a panel's height, between two names at a line's end
DIFFERS = " †"
Point = tuple[int, float, bool]
"""(tokens of the source, seconds or bytes, whether it may be quoted)."""


def save(result: Result, path: Path) -> None:
    """Write the picture in the format of the name's end; whole or not at all."""
    kind = path.suffix[1:].lower()
    known = {"metadata": {"Date": None}} if kind == "svg" else {}  # the same result gives the same file
    # Text stays text: a third of the size, and it can be searched.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "t5g2ref"}), replacing(path) as made:
        drawn(result).savefig(made, format=kind, dpi=130, bbox_inches="tight", pad_inches=0.15, **known)


def drawn(result: Result) -> Figure:
    """A pair of rows, time and memory, for each dtype and batch; a column of panels for each item."""
    rows = [row for row in result.rows if row.item in LONG]
    items = [item for item in LONG if any(row.item == item for row in rows)]
    groups = list(dict.fromkeys((row.dtype, row.batch) for row in rows))
    size = (WIDE * max(len(items), 2), HIGH * 2 * len(groups) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(2 * len(groups), len(items), squeeze=False)
    for at, (dtype, batch) in enumerate(groups):
        for panel, item in zip(panels[2 * at], items, strict=True):
            group = [row for row in rows if (row.item, row.dtype, row.batch) == (item, dtype, batch)]
            if not group:  # of a run that was interrupted
                panel.set_visible(False)
                panels[2 * at + 1][items.index(item)].set_visible(False)
                continue
            _time(panel, result, group)
            said = _title(item, dtype, batch if len({row.batch for row in rows}) > 1 else None)
            panel.set_title(said, loc="left", fontsize=9, color=INK, fontweight="bold")
            _memory(panels[2 * at + 1][items.index(item)], result, group)
    figure.suptitle("Time and memory against the source's length", x=0.01, ha="left", fontsize=12, color=INK)
    figure.supxlabel(_caption(result, size[0]), x=0.01, ha="left", fontsize=7.5, color=PALE, linespacing=1.5)
    return figure


def _title(item: str, dtype: str, batch: int | None) -> str:
    what = {"encode": "encode", "forward": "encoder and decoder", "decode": "one decoding step"}[item]
    return f"{what}, {dtype}" + (f", batch {batch}" if batch else "")


def _time(panel: Any, result: Result, rows: list[Row]) -> None:
    """Milliseconds on logarithmic axes; what lies under the floor no implementation can reach on this machine."""
    lines = {
        name: [
            (row.source, row.sides[name].median / row.steps * 1e3, row.quiet and row.agrees(name))
            for row in rows
            if name in row.sides
        ]
        for name in _names(result)
    }
    floor = [(row.source, row.floor / row.steps * 1e3) for row in rows if row.bound]
    panel.set_yscale("log")
    _lines(panel, result, lines, [low for _, low in floor])
    if floor:
        lengths, lows = zip(*floor, strict=True)
        panel.plot(lengths, lows, color=PALE, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
        panel.fill_between(lengths, panel.get_ylim()[0], lows, color=PALE, alpha=0.13, linewidth=0, zorder=0)
        kinds = " and ".join(dict.fromkeys(row.bound for row in rows if row.bound))
        panel.text(0.97, 0.04, f"the machine's limit: {kinds}", transform=panel.transAxes, ha="right", **_small(PALE))
    _axes(panel, rows, "ms")


def _memory(panel: Any, result: Result, rows: list[Row]) -> None:
    """MiB beyond the weights, linear from 0: twice as high is twice as much."""
    lines = {}
    for name in _names(result):
        found = [(row, row.sides[name].memory) for row in rows if name in row.sides]
        lines[name] = [(row.source, size / 2**20, row.agrees(name)) for row, size in found if size is not None]
    panel.set_ylim(0, max((point[1] for line in lines.values() for point in line), default=1) * 1.08 or 1)
    _lines(panel, result, lines, [])
    _axes(panel, rows, "MiB beyond the weights")


def _lines(panel: Any, result: Result, lines: dict[str, list[Point]], floor: list[float]) -> None:
    """Each side's line with its name at its end; a hollow point is no finding."""
    lines = {name: sorted(points) for name, points in lines.items() if points}
    for name, points in lines.items():
        style = _style(result, name)
        lengths, values, _ = zip(*points, strict=True)
        panel.plot(lengths, values, color=style["color"], linewidth=2.0 if style["ours"] else 1.3, zorder=3)
        for length, value, quotable in points:
            face = style["color"] if quotable else "white"
            panel.plot(length, value, style["mark"], color=style["color"], markerfacecolor=face, markersize=5, zorder=4)
    values = [value for points in lines.values() for _, value, _ in points] + floor
    if panel.get_yscale() == "log" and values:
        panel.set_ylim(min(values) / 1.8, max(values) * 1.4)
    ends = {name: points[-1] for name, points in lines.items()}
    for name, height in _apart(panel, {name: end[1] for name, end in ends.items()}).items():
        far, style = panel.get_yaxis_transform(), _style(result, name)
        said = f"{name}{DIFFERS}" if _differs(result, name) else name
        panel.text(1.02, height, said, transform=far, va="center", clip_on=False, **_small(style["color"]))


def _apart(panel: Any, ends: dict[str, float]) -> dict[str, float]:
    """Heights for the names of lines: that of the line's end, or where names would meet, evenly about their mean."""
    forth, back = (math.log10, lambda y: 10**y) if panel.get_yscale() == "log" else (float, float)
    low, high = (forth(limit) for limit in panel.get_ylim())
    gap, order = GAP * (high - low), sorted(ends, key=lambda name: ends[name])
    groups: list[tuple[list[str], float]] = []  # names from below, and their middle
    for name in order:
        groups.append(([name], forth(ends[name])))
        while len(groups) > 1 and _top(groups[-2], gap) > _top(groups[-1], gap) - gap * len(groups[-1][0]):
            (upper, _), (lower, _) = groups.pop(), groups.pop()
            names = lower + upper
            groups.append((names, sum(forth(ends[name]) for name in names) / len(names)))
    return {
        name: back(middle + gap * (at - (len(names) - 1) / 2))
        for names, middle in groups
        for at, name in enumerate(names)
    }


def _top(group: tuple[list[str], float], gap: float) -> float:
    """The upper edge of a group's last name."""
    return group[1] + gap * len(group[0]) / 2


def _axes(panel: Any, rows: list[Row], unit: str) -> None:
    lengths = sorted({row.source for row in rows})
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(lengths))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    low, high = panel.get_ylim()
    if panel.get_yscale() == "log" and high < 300 * low:  # decades alone would leave it almost without numbers
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.set_xlabel("tokens of the source", **_small(PALE))
    panel.set_ylabel(unit, **_small(PALE))
    panel.tick_params(labelsize=8, colors=PALE, length=3)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color("#bbbbbb")


def _caption(result: Result, inches: float) -> str:
    rows = [row for row in result.rows if row.item in LONG]
    held = "; ".join(
        f"{dtype} " + ", ".join(f"{name} {size / 2**20:.0f}" for name, size in sizes.items())
        for dtype, sizes in result.held
    )
    hollow = [
        *(["others used the cores meanwhile"] if not all(row.quiet for row in rows) else []),
        *(
            [f"{DIFFERS.strip()} computed something else"]
            if any(_differs(result, name) for name in _names(result))
            else []
        ),
    ]
    lines = [f"{result.machine}. {result.title}.", f"Weights in MiB: {held}." if held else "", *_rates(result)]
    if hollow:
        lines.append(f"Hollow points are no findings: {'; '.join(hollow)}.")
    if not result.complete:
        lines.append("Interrupted: not all was measured.")
    wide = int(inches * 19)
    return "\n".join(part for line in lines if line for part in textwrap.wrap(line, wide))


def _rates(result: Result) -> Iterator[str]:
    """What the floor was made with."""
    beside = [row.beside for row in result.rows if row.beside is not None and row.item in LONG]
    if beside:
        gemm, gemv = ([x for rates in beside for x in getattr(rates, name)] for name in ("gemm", "gemv"))
        yield (
            f"The limit: operations at {_span(gemm, 1e9)} GFLOP/s, bytes at {_span(gemv, 1e9)} GB/s, measured beside "
            "each point."
        )
    elif result.ceilings.gemm:
        rates = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in result.ceilings.gemm.items())
        speed = f"{result.ceilings.copy / 1e9:.4g} GB/s"
        yield f"The limit: operations at {rates} TFLOP/s, bytes at {speed}, measured in the same run."


def _span(rates: list[float], unit: float) -> str:
    low, high = (f"{rate / unit:.0f}" for rate in (min(rates), max(rates)))
    return low if low == high else f"{low} to {high}"


def _names(result: Result) -> list[str]:
    return [column.name for column in result.columns]


def _style(result: Result, name: str) -> dict[str, Any]:
    """Ours in blues and thick, others in warm colours; the same in every panel."""
    ours, at = result.named("ours"), _names(result).index(name)
    blues = name in ours
    place = ours.index(name) % 2 if blues else 2 + (at - len(ours)) % (len(COLOURS) - 2)
    return {"color": COLOURS[place], "mark": MARKS[at % len(MARKS)], "ours": blues}


def _differs(result: Result, name: str) -> bool:
    """Whether a side computed something else at some length."""
    return any(name in row.sides and not row.agrees(name) for row in result.rows if row.item in LONG)


def _small(colour: str) -> dict[str, Any]:
    return {"fontsize": 8, "color": colour}
