"""The plot of error along depth: its geometry, in numbers. The template writes the SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from conformance.report.document import Row, failing, group_of, in_words, number, severity

WIDTH, HEIGHT = 1080.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 1064.0, 46.0, 252.0
FLOOR = 0.05  # ratios below are drawn on the axis
MANY = 500  # taps; where there are more, only the worst of each layer is drawn

Stage = tuple[int, str]  # call, group of taps


@dataclass(frozen=True)
class Point:
    """One tap. `shape`: "local" or "cumulative"; `bad`: it fails; `rim`: it has no number to be drawn at."""

    x: float
    y: float
    shape: str
    bad: bool
    rim: bool
    title: str


@dataclass(frozen=True)
class Band:
    """One layer's place on the axis; the label is empty where there is no room for it."""

    x: float
    width: float
    shaded: bool
    label: str
    title: str


@dataclass(frozen=True)
class Depth:
    """Error along depth. `line` and `limits` are SVG paths, `ticks` are (y, label), `mark` is (x, tap)."""

    points: list[Point]
    bands: list[Band]
    calls: list[tuple[float, str]]
    line: str
    limits: list[str]
    limit_label: tuple[float, str] | None
    ticks: list[tuple[float, str]]
    mark: tuple[float, str] | None
    rim: bool
    reduced: bool
    first_call: str
    zero: float = BOTTOM
    top: float = TOP
    left: float = LEFT
    right: float = RIGHT
    size: tuple[float, float] = field(default=(WIDTH, HEIGHT))


class _Scale:
    """Maps a stage of the computation to x and a ratio to y (logarithmic)."""

    def __init__(self, stages: Sequence[Stage], largest: float) -> None:
        self._index = {stage: i for i, stage in enumerate(stages)}
        self.step = (RIGHT - LEFT) / max(1, len(stages))
        self.top = max(2.0, math.ceil(math.log10(max(largest, 10.0)) + 0.2))
        self._bottom = math.log10(FLOOR)

    def x(self, stage: Stage, part: float) -> float:
        return round(LEFT + (self._index[stage] + part) * self.step, 1)

    def y(self, ratio: float) -> float:
        part = (math.log10(max(ratio, FLOOR)) - self._bottom) / (self.top - self._bottom)
        return round(BOTTOM - min(1.0, part) * (BOTTOM - TOP - 14), 1)


def depth(local: list[Row], cumulative: list[Row], culprit: Row | None) -> Depth | None:
    """The plot of one comparison; None where nothing was compared."""
    if not local and not cumulative:
        return None
    stages = list(dict.fromkeys(_stage(row) for row in (*local, *cumulative)))
    ratios = [r for row in (*local, *cumulative) if math.isfinite(r := _ratio(row))]
    scale = _Scale(stages, max(ratios, default=1.0))
    reduced = len(local) > MANY
    drawn = [
        (row, x) for row, x in _placed(local, scale) if not row["tap"].endswith(".mask") or row["status"] != "pass"
    ]
    points = [_point(row, x, "local", scale) for row, x in (_reduced(drawn) if reduced else drawn)]
    along = list(_placed(cumulative, scale, end=True))
    points += [_point(row, x, "cumulative", scale) for row, x in along]
    limits = _limits(drawn, scale) | _limits(along, scale)
    where = next((x for row, x in (*drawn, *along) if _same(row, culprit)), None)
    return Depth(
        sorted(points, key=lambda p: p.bad),  # failing ones last: on top
        _bands(stages, scale),
        [(scale.x(s, 0.0), f"call {s[0]}") for i, s in enumerate(stages) if i > 0 and s[0] != stages[i - 1][0]],
        _line([p for p in points if p.shape == "cumulative"]),
        list(limits),
        next(iter(limits.values()), None),
        [(scale.y(10.0**e), _power(e)) for e in range(-1, int(scale.top) + 1, 1 if scale.top < 8 else 2)],
        None if where is None or culprit is None else (where, str(culprit["tap"])),
        any(p.rim for p in points),
        reduced,
        f"call {stages[0][0]}",
    )


def _stage(row: Row) -> Stage:
    call = number(row["call"])
    return (int(call) if math.isfinite(call) else 0), part_of(str(row["tap"]))


def part_of(tap: str) -> str:
    """A tap's group, but finer where images come in, between the embedding and the first layer."""
    group = group_of(tap)
    if group == "vision":
        layer = re.match(r"encoder\.vision_tower\.encoder\.layers\.(\d+)", tap)
        return f"vision layer {layer[1]}" if layer else "vision in" if ".embeddings" in tap else "vision out"
    return group if tap.endswith("embed_tokens") else group.replace(" embedding", " inputs")


def _ratio(row: Row) -> float:
    """The ratio to draw: the one that was judged, or the largest where another test failed."""
    return number(row["judged"] if row["status"] in ("pass", "values") else row.get("worst"))


def _same(row: Row, culprit: Row | None) -> bool:
    return culprit is not None and (row["tap"], row["call"]) == (culprit["tap"], culprit["call"])


def _placed(found: list[Row], scale: _Scale, *, end: bool = False) -> Iterable[tuple[Row, float]]:
    """Every row with its x. The taps of a layer lie side by side; `end` puts a single one at its end."""
    counts: dict[Stage, int] = {}
    for row in found:
        counts[_stage(row)] = counts.get(_stage(row), 0) + 1
    seen: dict[Stage, int] = {}
    for row in found:
        stage = _stage(row)
        seen[stage] = seen.get(stage, 0) + 1
        yield row, scale.x(stage, (seen[stage] - (0.0 if end else 0.5)) / counts[stage])


def _reduced(drawn: list[tuple[Row, float]]) -> list[tuple[Row, float]]:
    """The worst tap of each layer."""
    worst: dict[Stage, tuple[Row, float]] = {}
    for row, x in drawn:
        stage = _stage(row)
        if stage not in worst or severity(row) > severity(worst[stage][0]):
            worst[stage] = row, x
    return list(worst.values())


def _point(row: Row, x: float, shape: str, scale: _Scale) -> Point:
    ratio, bad = _ratio(row), bool(failing([row]))
    rim = not math.isfinite(ratio)
    told = f"{in_words(ratio)} (limit {in_words(row.get('limit'))})" if not rim else "no ratio"
    title = f"{shape} · {row['tap']} · call {row['call']} · {row['status']} · {told}"
    return Point(x, TOP if rim else scale.y(ratio), shape, bad, rim, title)


def _limits(placed: list[tuple[Row, float]], scale: _Scale) -> dict[str, tuple[float, str]]:
    """SVG path of the limits → where its label goes and what it says."""
    rows = [(x, limit) for row, x in placed if row["status"] in ("pass", "values") and (limit := _limit(row)) > 0]
    if not rows:
        return {}
    values = {limit for _, limit in rows}
    low, high = in_words(min(values)), in_words(max(values))
    if len(values) == 1:
        y = scale.y(rows[0][1])
        return {f"M{LEFT} {y}H{RIGHT}": (y, f"limit {low}")}
    return {_path([(x, scale.y(limit)) for x, limit in rows]): (scale.y(rows[-1][1]), f"limit {low} to {high}")}


def _limit(row: Row) -> float:
    limit = number(row.get("limit"))
    return limit if math.isfinite(limit) else 0.0


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points) if points else ""


def _line(points: list[Point]) -> str:
    """The SVG path through the points, broken where one has no number."""
    runs = groupby(points, key=lambda p: p.rim)
    return "".join(_path([(p.x, p.y) for p in run]) for rim, run in runs if not rim)


def _power(exponent: int) -> str:
    return {-1: "0.1", 0: "1", 1: "10", 2: "100"}.get(exponent, "10" + str(exponent).translate(_RAISED))


_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_SHORT = {"encoder": "E", "decoder": "D", "vision": "V", "projector": "proj", "heads": "heads"}


def _bands(stages: Sequence[Stage], scale: _Scale) -> list[Band]:
    """Every layer's band, labelled E0, E1, … where there is room."""
    bands, free = [], 0.0
    for i, stage in enumerate(stages):
        label, x = _short(stage[1]), scale.x(stage, 0.0)
        width = 7.2 * len(label) + 8
        middle = x + scale.step / 2
        fits = middle - width / 2 >= free
        if fits:
            free = middle + width / 2
        title = f"{stage[1]}, call {stage[0]}"
        bands.append(Band(x, round(scale.step, 2), i % 2 == 0, label if fits else "", title))
    return bands


def _short(group: str) -> str:
    stack, _, rest = group.partition(" ")
    name = _SHORT.get(stack, stack)
    if rest.startswith("layer "):
        return name + rest.removeprefix("layer ")
    last = {"embedding": "emb", "inputs": "in", "in": "in", "final norm": "out", "out": "out"}.get(rest)
    return f"{name} {last}" if last else name
