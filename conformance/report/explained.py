"""Failing comparisons as text: a table where one peer has several causes, and each cause explained."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from conformance.defects.catalogue import DEFECTS
from conformance.judge.judgement import Judgement
from conformance.measure.causes import Cause, Row
from conformance.measure.finding import Finding
from conformance.measure.words import in_table, in_words, of_the_value
from conformance.report import spread
from conformance.report.candidates import candidates
from conformance.report.cards import Card, Failure, Place, cards, tabled
from conformance.report.result import Result

LABEL = 18  # columns of the label in front of a line


def explained(result: Result, width: int) -> Iterator[RenderableType]:
    """The tables of causes, then the causes."""
    made = _cards(result)
    for place, several in tabled(made).items():
        yield Text(f"\n{place[0]} on {place[1]}: {len(several)} causes", "italic")
        yield _cause_table(result, several, place)
    yield from (_explained(result, card, width) for card in made)


def _cards(result: Result) -> list[Card]:
    """A card for each cause of failing judgements."""
    failures = []
    for index, (target, j) in enumerate(result.judgements):
        culprit = j.culprit
        if culprit is not None and not unasked(j):
            row = culprit.tap, culprit.call, culprit.status
            local = [(f.tap, f.call, f.status) for f in j.local] if culprit in j.local else []
            failures.append(Failure(index, (j.peer, target), j.case, row, local, j.error))
    return cards(failures, result.layers)


def _cause_table(result: Result, several: list[Card], place: Place) -> Table:
    """A row a cause: what fails where, in how many cases, how far, and which defect it is."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("cause", "taps", "cases", "worst", "it is"):
        table.add_column(name, justify="right" if name == "worst" else "left", no_wrap=name in ("worst", "it is"))
    for card in several:
        members = [(result.judgements[f.index][1], f, row) for f, row in card.members if f.place == place]
        judged = [x for j, _, row in members if not math.isnan(x := _found(j, row).judged)]
        tried = [s for j, _, (tap, call, _) in members for s in j.looked_for(tap, call)[0]]
        names = dict.fromkeys(s.defect for s in tried if s.named)
        title, taps = (card.cause.title, card.cause.taps) if card.cause else ("", ())
        cases = [failure.case for _, failure, _ in members]
        worst = in_table(max(judged)) if judged else "-"
        table.add_row(title, _few(taps, 3), _few(cases, 2), worst, " ".join(names) or "?")
    return table


def _few(names: Sequence[str], most: int) -> str:
    """The first of many names, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _found(judgement: Judgement, row: Row) -> Finding:
    """The finding of a row."""
    found = (*judgement.exact, *judgement.local, *judgement.cumulative)
    return next(f for f in found if (f.tap, f.call, f.status) == row)


def wrapped(line: str, width: int, hang: int = LABEL) -> str:
    """A line of text, wrapped to the width and indented after its first line.

    Only a word longer than a line is broken. Foreign text keeps its own lines.
    """
    broken = [
        textwrap.fill(part, width, subsequent_indent=" " * hang, break_on_hyphens=False) for part in line.split("\n")
    ]
    return "\n".join(broken)


def unasked(judgement: Judgement) -> bool:
    """Whether there is no culprit, or only a tap that is missing because the peer raised."""
    culprit = judgement.culprit
    return culprit is None or bool(judgement.error and culprit.status == "missing")


def _explained(result: Result, card: Card, width: int) -> Text:
    """One cause, by the judgement that shows it first, and where else it shows."""
    members = [(*result.judgements[failure.index], row) for failure, row in card.members]
    (target, judgement, first), *more = members
    text = Text(f"\n{judgement.peer} fails case {judgement.case} on {target}\n", "bold red")
    exposed = [d for d in result.exposes.get(judgement.case, ()) if d not in result.hidden]
    tried = [(s.defect, s.verdict) for _, j, (tap, call, _) in members for s in j.looked_for(tap, call)[0]]
    culprit = _found(judgement, first)
    lines = [*_blamed(judgement, culprit, card.cause), *_named(judgement, culprit, exposed, tried)]
    lines += [*_afterwards(judgement, culprit), *_elsewhere([(t, j) for t, j, _ in more])]
    return text.append("\n".join(wrapped(line, width) for line in lines) + "\n", "default")


def _elsewhere(more: list[tuple[str, Judgement]]) -> Iterator[str]:
    """The other comparisons with the same first bad tap, by peer and checkpoint."""
    places: dict[tuple[str, str], list[str]] = {}
    for target, j in more:
        places.setdefault((j.peer, target), []).append(j.case)
    for label, ((peer, target), cases) in zip(chain(["the same in"], repeat("")), places.items(), strict=False):
        yield f"  {label:15} {peer} on {target}: {', '.join(cases)}"


def _where(judgement: Judgement, culprit: Finding) -> str:
    return next(name for name in ("exact", "local", "cumulative") if culprit in getattr(judgement, name))


def _blamed(judgement: Judgement, culprit: Finding, cause: Cause | None) -> Iterator[str]:
    """The lines about a culprit: where, what, how large."""
    where = _where(judgement, culprit)
    kind = "exact" if where == "exact" else "local"
    found: list[Finding] = getattr(judgement, kind)
    yield f"  first bad tap   {culprit.tap}   ({where}{'' if where == 'exact' else ' anchor'}, call {culprit.call})"
    yield f"  what            {culprit.status}: {culprit.detail}"
    if cause is not None and cause.where:
        yield f"  cause           {cause.title}"
    counted = "failing checks" if kind == "exact" else "failing taps"
    bad = [f for f in found if not f.passed]
    of_it = [f for f in bad if cause is not None and f.tap in {tap for tap, _, _ in cause.rows}]
    part = f", {len(of_it)} of them of this cause" if cause is not None and len(of_it) < len(bad) else ""
    yield f"  {counted:15} {len(bad)} of {len(found)} {kind}{part}"
    if where == "local":
        rows = [(f.tap, f.call, f.status) for f in found]
        for label, line in (
            ("layers", spread.layers(culprit.tap, rows)),
            ("it begins at", spread.cache(culprit.tap, culprit.call, rows)),
        ):
            if line:
                yield f"  {label:15} {line}"
    if not math.isnan(culprit.worst):
        id_ = f" (id {judgement.token})" if judgement.token and culprit == judgement.culprit else ""
        at = f"token {culprit.token}{id_}, {culprit.tokens} tokens compared"
        yield f"  worst ratio     {in_words(culprit.worst)} (median {in_words(culprit.median)}) at {at}"
        peer, control = of_the_value(culprit.peer_error), of_the_value(culprit.control_error)
        yield f"  off by          the peer {peer}, the control {control}"
    elif judgement.token and culprit == judgement.culprit:
        yield f"  at the id       {judgement.token}"
    if judgement.unsteady:
        yield f"  unsteady        {judgement.unsteady}"


def _afterwards(judgement: Judgement, culprit: Finding) -> Iterator[str]:
    """What is to be said behind the name."""
    if judgement.known:
        yield f"  known           {judgement.known}"
    if judgement.error:
        yield f"  then it raised  {judgement.error}"
    if _where(judgement, culprit) == "cumulative":
        yield "  every single operation is right by itself: look at what is passed between them"


def _named(judgement: Judgement, culprit: Finding, exposed: list[str], tried: list[tuple[str, str]]) -> Iterator[str]:
    """The defect that was named; where none was, those that the figures do not exclude."""
    looked, apart = judgement.looked_for(culprit.tap, culprit.call)
    named = [s for s in looked if s.named]
    for s in named:
        label = "and" if s.beside and s is not named[0] else "it is"
        yield f"  {label:15} {s.defect} {DEFECTS.get(s.defect, '')} ({s.size})"
    if apart:
        yield f"  told apart by   {apart}"
    akin = [s for s in looked if s.akin]
    for s in akin if not named else ():
        size = f"{s.coefficient:.2f} ± {in_words(s.error, 2)} of its pattern"
        yield f"  it is akin to   {s.defect} {DEFECTS.get(s.defect, '')}, and is not it ({size})"
    if not named and not akin:
        single = judgement.dtype == "float32"
        left = candidates(culprit.tap, culprit.status, exposed, tried, single=single)
        yield from (f"  {label:15} {line}" for label, line in zip(chain(["it may be"], repeat("")), left, strict=False))
