"""The result for a person (a table of 100 columns) and for a machine (one JSON document, schema versioned)."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.compare import Finding
from conformance.exposure import DEFECTS, first_seen_at
from conformance.judge import LIMITS, Judgement
from t5g2ref import __version__
from t5g2ref.backend import NUMPY, Backend

SCHEMA = 1


@dataclass(frozen=True)
class Result:
    """Everything that one command found.

    Args:
        judgements: (target name, judgement) in the order of the run.
        exposes: case name → defect ids.
        hidden: defect id → why this run could not have seen it.
        versions: of the peers.
        selected, available: cases chosen and cases there are, for each target together.
        seconds, peak_bytes: of the whole command.
        interrupted: how far it came, when someone stopped it.
    """

    judgements: list[tuple[str, Judgement]]
    exposes: dict[str, tuple[str, ...]]
    hidden: dict[str, str]
    versions: dict[str, str]
    selected: int
    available: int
    seconds: float = 0.0
    peak_bytes: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    interrupted: str = ""

    @property
    def verdict(self) -> str:
        """CONFORMS, DEVIATES, or INCOMPLETE when a peer could not be judged on something it was asked."""
        if any(j.deviates for _, j in self.judgements):
            return "DEVIATES"
        if self.interrupted or not self.judgements or any(j.error for _, j in self.judgements):
            return "INCOMPLETE"
        return "CONFORMS"

    @property
    def status(self) -> int:
        return {"CONFORMS": 0, "DEVIATES": 1, "INCOMPLETE": 3}[self.verdict]

    def worst(self, anchor: str = "local") -> tuple[str, Judgement, Finding] | None:
        """The place with the largest ratio over everything."""
        places = [(t, j, w) for t, j in self.judgements if (w := j.worst(anchor)) is not None]
        return max(places, key=lambda p: (not p[2].passed, np.nan_to_num(p[2].judged, nan=np.inf)), default=None)

    def last_line(self) -> str:
        """The fixed last line of the output."""
        scope = "" if self.selected == self.available else f" (on {self.selected} of {self.available} cases)"
        return f"VERDICT: {self.verdict}{scope}{self._blame()}"

    def _blame(self) -> str:
        if self.verdict == "INCOMPLETE" and self.interrupted:
            return f" - interrupted after {self.interrupted}"
        for target, judgement in self.judgements:
            culprit = judgement.culprit
            if self.verdict == "DEVIATES" and judgement.deviates and culprit is not None:
                return f" at {culprit.tap} ({culprit.status}; {judgement.peer}, case {judgement.case}, {target})"
            if self.verdict == "INCOMPLETE" and judgement.error:
                return f" - {judgement.peer} could not run case {judgement.case}"
        return ""


def environment(backend: Backend = NUMPY) -> dict[str, str]:
    """What judged: versions, and the backend with its device where it is not NumPy."""
    found = {"t5g2ref": __version__, "numpy": np.__version__, "python": platform.python_version()}
    return found if backend is NUMPY else found | {"backend": backend.name} | backend.describe()


def as_json(result: Result) -> str:
    """The whole result; numbers that JSON cannot hold (NaN, infinity) become strings."""
    document = {
        "schema": SCHEMA,
        "verdict": result.verdict,
        "line": result.last_line(),
        "limits": LIMITS,
        "environment": result.environment | result.versions,
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
        "cases": {"selected": result.selected, "available": result.available},
        "not_exposed": result.hidden,
        "columns": [f.name for f in fields(Finding)],
        "judgements": [_judgement(target, judgement) for target, judgement in result.judgements],
    }
    return json.dumps(_plain(document), allow_nan=False)


def _judgement(target: str, judgement: Judgement) -> dict[str, Any]:
    """One peer on one case; a finding is a row under the document's `columns`."""
    culprit = judgement.culprit
    return {
        "target": target,
        "peer": judgement.peer,
        "case": judgement.case,
        "passed": judgement.passed,
        "error": judgement.error,
        "culprit": None if culprit is None else asdict(culprit),
        "seconds": judgement.seconds,
        "local": [astuple(f) for f in judgement.local],
        "cumulative": [astuple(f) for f in judgement.cumulative],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def write_json(result: Result, path: Path) -> None:
    path.write_text(as_json(result) + "\n", encoding="utf-8")


def show(result: Result, console: Console, *, detail: bool = False) -> None:
    """The table, the failures explained, what was not exposed, the figures. The verdict line is the caller's."""
    for target in dict.fromkeys(name for name, _ in result.judgements):
        console.print(_table(target, [j for name, j in result.judgements if name == target]))
    if detail:
        for target, judgement in result.judgements:
            console.print(_details(target, judgement))
    for target, judgement in result.judgements:
        if not judgement.passed:
            console.print(_explained(target, judgement, result.exposes.get(judgement.case, ())))
    console.print(_summary(result))


def _table(target: str, judgements: list[Judgement]) -> Table:
    """A row a case, a column a peer: worst local ratio, then worst cumulative ratio."""
    peers = list(dict.fromkeys(j.peer for j in judgements))
    title = Text(f"checkpoint {target}: worst ratio, local / cumulative")  # no markup: a path may hold brackets
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("case", no_wrap=True)
    for peer in peers:
        heading = Text(peer.removeprefix("transformers:").replace(":", "\n"))  # four peers fit side by side
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("worst place (local)")  # the only one that a narrow terminal may cut
    table.add_column("", no_wrap=True, min_width=5)
    for case in dict.fromkeys(j.case for j in judgements):
        rows = {j.peer: j for j in judgements if j.case == case}
        cells = [f"{_ratio(j.worst())} / {_ratio(j.worst('cumulative'))}" for j in rows.values()]
        table.add_row(case, *cells, _cut(_place(list(rows.values()))), _passed(list(rows.values())))
    return table


def _place(judgements: list[Judgement]) -> str:
    """Where the worst local ratio is, or the first fault, or why there is none."""
    for j in judgements:
        if not j.passed:
            return _shortened(j.culprit.tap) if j.culprit else j.error.split(":")[0]
    worst = max((w for j in judgements if (w := j.worst()) is not None), key=lambda f: f.judged)
    return _shortened(worst.tap)


def _passed(judgements: list[Judgement]) -> Text:
    if all(j.passed for j in judgements):
        return Text("pass", "green")
    return Text("FAIL" if any(j.deviates for j in judgements) else "error", "bold red")


def _ratio(finding: Finding | None) -> str:
    if finding is None:
        return "-"
    return finding.status if math.isnan(finding.judged) else f"{finding.judged:.3g}"


def _cut(text: str) -> Text:
    """One line whatever the width: its column gives way first, and its end is left out."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _shortened(tap: str) -> str:
    """A tap's name that fits: the tower's prefix says nothing that its layer does not."""
    for long, short in (("encoder.text_model.", "encoder."), ("encoder.vision_tower.encoder.", "vision.")):
        tap = tap.replace(long, short)
    return tap


def _details(target: str, judgement: Judgement) -> Table:
    title = Text(f"{judgement.peer} on {judgement.case} ({target}): local ratio at every tap")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("call", "tap", "tokens", "median", "99 %", "worst", "token", ""):
        table.add_column(name, justify="left" if name in ("tap", "token") else "right", no_wrap=name != "tap")
    for f in judgement.local:
        numbers = [f"{x:.2f}" for x in (f.median, f.p99, f.worst)]
        token = ",".join(map(str, f.token))
        status = Text("pass", "green") if f.passed else Text(f.status, "bold red")
        table.add_row(str(f.call), _cut(_shortened(f.tap)), str(f.tokens), *numbers, token, status)
    return table


def _explained(target: str, judgement: Judgement, exposes: tuple[str, ...]) -> Text:
    culprit = judgement.culprit
    text = Text(f"\n{judgement.peer} fails case {judgement.case} on {target}\n", "bold red")
    if culprit is None or not judgement.deviates:
        return text.append(f"  it could not be judged: {judgement.error or 'nothing was compared'}\n", "default")
    where = "local" if culprit in judgement.local else "cumulative"
    failing = sum(not f.passed for f in judgement.local)
    lines = [
        f"  first bad tap   {culprit.tap}   ({where} anchor, call {culprit.call})",
        f"  what            {culprit.status}: {culprit.detail}",
        f"  failing taps    {failing} of {len(judgement.local)} local",
    ]
    if not math.isnan(culprit.worst):
        at = f"token {culprit.token}, {culprit.tokens} tokens compared"
        errors = f"peer {culprit.peer_error:.2e}, control {culprit.control_error:.2e} of the value"
        lines.append(f"  worst ratio     {culprit.worst:.3g} (median {culprit.median:.3g}) at {at}; errors {errors}")
    known = first_seen_at(culprit.tap, exposes)
    if known:
        lines.append("  it may be       " + "\n                  ".join(f"{d} {DEFECTS[d]}" for d in known))
    if judgement.error:
        lines.append(f"  then it raised  {judgement.error}")
    if where == "cumulative":
        lines.append("  every single operation is right by itself: look at what is passed between them")
    return text.append("\n".join(lines) + "\n", "default")


def _summary(result: Result) -> Text:
    text = Text()
    worst, whole = result.worst(), result.worst("cumulative")
    for name, place, tokens in (("local", worst, "each"), ("cumulative", whole, "median")):
        if place is not None and not math.isnan(place[2].judged):
            target, j, f = place
            text.append(f"worst {name} ratio {f.judged:.3g} (limit {LIMITS[name]:g}, {tokens} token)")
            text.append(f" at {_shortened(f.tap)}, {j.peer}, case {j.case}, {target}\n")
    taps = sum(len(j.local) for _, j in result.judgements)
    text.append(f"{len(result.judgements)} comparisons, {taps} taps, {result.seconds:.0f} s, ")
    text.append(f"peak memory {result.peak_bytes / 2**30:.1f} GiB; ")
    text.append(", ".join(f"{k} {v}" for k, v in (result.environment | result.versions).items()) + "\n")
    groups: dict[str, list[str]] = {}
    for defect, reason in result.hidden.items():
        groups.setdefault(reason, []).append(defect)
    text.append(f"exposed {len(DEFECTS) - len(result.hidden)} of {len(DEFECTS)} catalogued defects; not these:\n")
    for reason, defects in groups.items():
        text.append(f"  {' '.join(defects)}: {reason}\n")
    return text
