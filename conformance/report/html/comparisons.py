"""The comparisons as the page shows them: which taps of each, in what order, and how many are left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from conformance.report.document import Document, Row, doubts, failing, grouped, number, rows, severity, state
from conformance.report.html.masks import Mask, mask

FULL = 6000  # rows of failing comparisons that a page holds; the rest are cut as passing ones are
WORST = 8  # rows of a passing comparison: the worst ones
OPEN = 4  # failing groups of a comparison that are unfolded at first
SYMBOLS = {"pass": "✓", "fail": "✗", "known": "≈", "error": "!", "skip": "–", "unclear": "?"}
WORDS = {
    "pass": "passed",
    "fail": "deviates",
    "known": "known deviation",
    "error": "raised",
    "skip": "skipped",
    "unclear": "unclear",
}


@dataclass(frozen=True)
class Group:
    """Some taps of one comparison, under a heading; `open`: unfolded at first."""

    title: str
    shown: list[Row]
    total: int
    bad: int
    open: bool


@dataclass(frozen=True)
class Comparison:
    """One peer on one case, as the page shows it."""

    index: int
    judgement: Document
    state: str
    culprit: Row | None
    anchor: str
    groups: list[Group]
    exact: list[Row]
    masks: list[tuple[Document, Mask]]
    half: bool
    total: int
    left_out: int
    failing: int
    open: bool

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.state]

    @property
    def word(self) -> str:
        return WORDS[self.state]

    @property
    def size(self) -> str:
        """What was compared: taps, and what the exact lane checks."""
        checks = len(self.judgement.get("exact", ()))
        told = [_counted(self.total, "tap")] if self.total or not checks else []
        return ", ".join(told + [_counted(checks, "check")] * bool(checks))

    @property
    def wrong(self) -> str:
        """How much of it fails."""
        checks = len(failing(self.exact))
        told = [f"{self.failing - checks} of {_counted(self.total, 'tap')}"] if self.total else []
        every = _counted(len(self.judgement.get("exact", ())), "check")
        return ", ".join(told + [f"{checks} of {every}, bit for bit"] * bool(checks)) or "none"

    @property
    def doubts(self) -> list[str]:
        return doubts(self.judgement)

    @property
    def limits(self) -> list[tuple[Document, Comparison]]:
        """Its own limits k, in the form that the table of limits takes."""
        return [(entry, self) for entry in self.judgement.get("k", ())]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def comparisons(document: Document) -> list[Comparison]:
    left, shown, opened = FULL, [], 0
    for index, judgement in enumerate(document["judgements"]):
        found = _comparison(document, index, judgement, left, opened < 3)
        opened += found.open
        left -= sum(len(group.shown) for group in found.groups) if found.state != "pass" else 0
        shown.append(found)
    return shown


def _comparison(document: Document, index: int, judgement: Document, left: int, may_open: bool) -> Comparison:
    local, cumulative = rows(document, judgement, "local"), rows(document, judgement, "cumulative")
    exact, bad = rows(document, judgement, "exact"), failing((*local, *cumulative))
    how, total = state(judgement), len(local) + len(cumulative)
    whole = how != "pass" and bool(bad) and total <= left
    groups = _whole(local, cumulative) if whole else _worst(local, cumulative, cut=how != "pass")
    culprit = judgement.get("culprit")
    return Comparison(
        index,
        judgement,
        how,
        culprit,
        _anchor(culprit, exact, local),
        groups,
        failing(exact) or exact[:WORST],
        [(m, mask(m["expected"], m["found"], _first(m))) for m in judgement.get("masks", ())],
        str(judgement.get("dtype", "float32")) != "float32",
        total,
        total - sum(len(group.shown) for group in groups),
        len(bad) + len(failing(exact)),
        may_open and how == "fail",
    )


def _first(picture: Document) -> int | None:
    """The number of the query in the picture's first row; None where it is not known."""
    return int(number(picture["first"])) if "first" in picture else None if picture["clipped"] else 0


def _anchor(culprit: Row | None, exact: list[Row], local: list[Row]) -> str:
    """The lane or anchor in which the culprit is."""
    for name, found in (("exact lane", exact), ("local anchor", local)):
        if culprit is not None and any(
            (r["tap"], r["call"]) == (culprit["tap"], culprit["call"]) for r in failing(found)
        ):
            return name
    return "cumulative anchor" if culprit is not None else ""


def _whole(local: list[Row], cumulative: list[Row]) -> list[Group]:
    """Every tap in its group. Failing groups come first, and in each the failing taps."""
    groups = [_group(f"{name} (local)", found, found) for name, found in grouped(local).items()]
    if cumulative:
        groups.append(_group("residual stream (cumulative)", cumulative, cumulative))
    first = [g for g in groups if g.bad][:OPEN]
    return sorted((replace(g, open=g in first) for g in groups), key=lambda g: not g.bad)


def _worst(local: list[Row], cumulative: list[Row], *, cut: bool) -> list[Group]:
    """The taps with the largest ratios; ten times as many where a failing comparison had to be cut."""
    groups = []
    for title, found in (("worst taps (local)", local), ("worst taps (cumulative)", cumulative)):
        keep = WORST * 10 if cut and failing(found) else WORST
        chosen = sorted(found, key=severity, reverse=True)[:keep]
        if found:
            groups.append(_group(title, chosen, found))
    return groups


def _group(title: str, shown: list[Row], found: list[Row]) -> Group:
    bad = failing(found)
    return Group(title, sorted(shown, key=lambda row: row["status"] == "pass"), len(found), len(bad), bool(bad))
