"""The result as text: a table, each culprit explained, what could not be seen. Lines are wrapped once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import product

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.cases.pictured import NAME as PICTURES
from conformance.defects.catalogue import DEFECTS
from conformance.judge.judgement import Judgement
from conformance.judge.together import TOGETHER
from conformance.measure.finding import Finding
from conformance.measure.limits import LIMITS
from conformance.measure.words import in_table, in_words
from conformance.peers.find import PROCESS
from conformance.report import diagnoses
from conformance.report.explained import explained, unasked, wrapped
from conformance.report.result import Result

WIDE = 48  # characters of a peer's name over its column
RAISED = re.compile(r"\w*(Error|Exception): ")  # by the peer's run: how `guard.said` begins
CANNOT = "  if it cannot    put what these cases need into the peer's `lacks`, or raise Skip: see `explain`"


def show(result: Result, console: Console, *, detail: bool = False) -> None:
    """Print the table, the failures explained, the figures, and what was not exposed; not the verdict's line."""
    for target in dict.fromkeys(name for name, _ in result.judgements):
        console.print(Text(f"checkpoint {target}: worst ratio, local / cumulative", "italic"))
        console.print(_table([j for name, j in result.judgements if name == target]))
    for (target, judgement), anchor in product(result.judgements, ("exact", "local", "cumulative") * detail):
        if getattr(judgement, anchor):
            console.print(_details(target, judgement, anchor))
    show_failures(result, console)
    console.print(_summary(result, console.width), soft_wrap=True)


def show_failures(result: Result, console: Console) -> None:
    """Print each failure explained, and what could not be judged and why; nothing where all passed."""
    width = console.width
    for part in explained(result, width):
        console.print(part, soft_wrap=True)
    for diagnosis in result.diagnoses:
        console.print(Text(wrapped(diagnoses.told(diagnosis), width), "bold"), soft_wrap=True)
    for text in _unjudged([(t, j) for t, j in result.judgements if not j.passed and unasked(j)], width):
        console.print(text, soft_wrap=True)


def _table(judgements: list[Judgement]) -> Table:
    """A row a case, a column a peer: worst local ratio, then worst cumulative ratio."""
    peers = list(dict.fromkeys(j.peer for j in judgements))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("case", no_wrap=True)
    for peer in peers:
        short = peer if len(peer) <= WIDE else peer[: WIDE - 1] + "…"  # a command line may be long
        heading = Text(short.removeprefix("transformers:").replace(":cpu", "").replace(":", "\n"))  # four fit
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("worst place (local)")  # the only one that a narrow terminal may cut
    table.add_column("", no_wrap=True, min_width=5)
    for case in dict.fromkeys(j.case for j in judgements):
        rows = {j.peer: j for j in judgements if j.case == case}
        cells = [_cell(rows.get(peer)) for peer in peers]
        table.add_row(case, *cells, _cut(_place(list(rows.values()))), _passed(list(rows.values())))
    return table


def _cell(judgement: Judgement | None) -> str:
    """Worst local and worst cumulative ratio; for the exact lane, how many findings passed."""
    if judgement is None:
        return ""
    if judgement.exact and not judgement.local:
        return f"{sum(f.passed for f in judgement.exact)} of {len(judgement.exact)}"
    return f"{_ratio(judgement.worst())} / {_ratio(judgement.worst('cumulative'))}"


def _place(judgements: list[Judgement]) -> str:
    """Where the worst local ratio is; where a peer did not pass, the culprit or the reason."""
    for j in judgements:
        if not j.passed:
            other = _shortened(j.partly[0].tap) if j.partly else "unclear"
            return _shortened(j.culprit.tap) if j.culprit else (j.skipped or j.error or other).split(":")[0]
    worst = max((w for j in judgements if (w := j.worst()) is not None), key=lambda f: f.judged, default=None)
    if worst is None:
        named = {TOGETHER: "patterns", PICTURES: "pixel values, by picture"}
        return named.get(judgements[0].case, "weights, embeddings, probes")
    return _shortened(worst.tap)


def _passed(judgements: list[Judgement]) -> Text:
    if all(j.passed for j in judgements):
        return Text("pass", "green")
    if any(j.deviates for j in judgements):
        return Text("FAIL", "bold red")
    judgement = next(j for j in judgements if not j.passed)
    unclear = judgement.unclear or judgement.partly
    for word, state in (("known", judgement.known), ("skip", judgement.skipped), ("unclear", unclear)):
        if state:
            return Text(word, "bold yellow")
    return Text("error", "bold red")


def _ratio(finding: Finding | None) -> str:
    if finding is None:
        return "-"
    return finding.status if math.isnan(finding.judged) else in_table(finding.judged)


def _cut(text: str) -> Text:
    """Text that stays on one line: where there is no room, its end is left out."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _shortened(tap: str) -> str:
    """A tap's name without the long prefixes, which say nothing that the rest does not."""
    for long, short in (("encoder.text_model.", "encoder."), ("encoder.vision_tower.encoder.", "vision.")):
        tap = tap.replace(long, short)
    return tap


def _details(target: str, judgement: Judgement, anchor: str) -> Table:
    """Every finding of the exact lane or of one anchor, each with its limit."""
    what = {"exact": "exact lane", "local": "local ratio at every tap", "cumulative": "cumulative ratio by the median"}
    title = Text(f"{judgement.peer} on {judgement.case} ({target}): {what[anchor]}")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("call", "tap", "tokens", "median", "99 %", "worst", "limit", "token", ""):
        table.add_column(name, justify="left" if name in ("tap", "token") else "right", no_wrap=name != "tap")
    for f in getattr(judgement, anchor):
        numbers = [
            "-" if math.isnan(x) else f"{x:.2f}" if abs(x) < 1e4 else in_table(x)
            for x in (f.median, f.p99, f.worst, f.limit)
        ]
        token = ",".join(map(str, f.token))
        status = Text("pass", "green") if f.passed else Text(f.status, "bold red")
        table.add_row(str(f.call), _cut(_shortened(f.tap)), str(f.tokens), *numbers, token, status)
    return table


def _unjudged(judgements: list[tuple[str, Judgement]], width: int) -> Iterator[Text]:
    """What could not be judged: each reason once, with its cases."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for target, j in judgements:
        unclear = f"rounding noise could hide anything at {', '.join(j.unclear)}" if j.unclear else ""
        part = "; ".join(f"{s.part}: no proof, and no pass" for s in j.partly)
        why = j.skipped or j.error or "; ".join(filter(None, (unclear, part))) or "nothing was compared"
        groups.setdefault((j.peer, target, why, j.known), []).append(j.case)
    for (peer, target, why, known), cases in groups.items():
        what, colour = ("was not judged, as is known,", "bold yellow") if known else ("could not be judged", "bold red")
        text = Text(f"\n{peer} {what} on {len(cases)} case{'s' * (len(cases) > 1)} of {target}\n", colour)
        lines = [f"  cases           {' '.join(cases)}", f"  why             {why}"]
        lines += [f"  known           {known}"] if known else []
        lines += [CANNOT] if RAISED.match(why) and not known else []
        yield text.append("\n".join(wrapped(line, width) for line in lines) + "\n", "default")


def _summary(result: Result, width: int) -> Text:
    """Figures, caveats, and what could not be seen; each line wrapped once."""
    text = Text()
    for dtype in result.dtypes:
        text.append("".join(wrapped(line, width, 4) + "\n" for line in _figures(result, dtype)))
    taps = sum(len(j.local) for _, j in result.judgements)
    versions = ", ".join(f"{k} {v}" for k, v in (result.environment | result.versions).items())
    line = f"{len(result.judgements)} comparisons, {taps} taps, {result.seconds:.0f} s, "
    text.append(wrapped(f"{line}peak memory {result.peak_bytes / 2**30:.1f} GiB; {versions}", width, 4) + "\n")
    for name, given in result.peers.items():
        if given.startswith(PROCESS):
            text.append(wrapped(f"{name}: {given}", width, 4) + "\n")
    for note in result.notes:
        text.append(wrapped(f"note: {note}", width, 6) + "\n", "yellow")
    for entry in result.known:
        what = "skip" if entry["status"] == "skipped" else "deviation"
        line = f"known {what}, {entry['state']}: {entry['reason']} ({entry['link']})"
        text.append(wrapped(line, width, 4) + "\n")
    return text.append("".join(wrapped(line, width, 6) + "\n" for line in _exposed(result.hidden)))


def _exposed(hidden: dict[str, str]) -> Iterator[str]:
    """How many defects could have shown, and each reason why others could not."""
    groups: dict[str, list[str]] = {}
    for defect, reason in hidden.items():
        groups.setdefault(reason, []).append(defect)
    rest = "; not these:" if groups else ""
    yield f"exposed {len(DEFECTS) - len(hidden)} of {len(DEFECTS)} catalogued defects{rest}"
    yield from (f"  {' '.join(d) if len(d) < len(DEFECTS) else 'all'}: {reason}" for reason, d in groups.items())


def _figures(result: Result, dtype: str) -> Iterator[str]:
    """The largest ratios of the peers in one type; in half precision also the largest error, and k."""
    for name, tokens in (("local", "each"), ("cumulative", "median")):
        place = result.worst(name, dtype)
        if place is not None and not math.isnan(place[2].judged):
            target, j, f = place
            limit = f"k = {f.limit:.2f}" if j.limits and name == "local" else f"limit {in_words(f.limit)}"
            yield (
                f"{dtype}: worst {name} ratio {in_words(f.judged)} ({limit}, {tokens} token) at {_shortened(f.tap)}, "
                f"{j.peer}, case {j.case}, {target}"
            )
    found = [f for _, j in result.judgements if j.dtype == dtype for f in j.local]
    ceiling = max((f.ceiling for f in found if f.ceiling == f.ceiling), default=math.nan)
    if not math.isnan(ceiling):
        yield f"{dtype}: largest error {in_words(ceiling)} of the worst case that legal rounding can do"
    if k := [limit.median for _, j in result.judgements if j.dtype == dtype for limit in j.limits]:
        yield (
            f"{dtype}: k of the median token {min(k):.2f} to {max(k):.2f}: bootstrap over tokens of the legal "
            f"profiles' errors, never above {in_words(LIMITS['half'])}"
        )
