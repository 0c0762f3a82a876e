"""What a verdict covers, in words, where that is not every case from the inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conformance.cases.abilities import Required
from conformance.cases.each_kind import ALL, EACH_KIND
from conformance.judge.comparisons import Found, Plan
from conformance.judge.judgement import Judgement


def coverage(asked: Required | None, plan: Plan, found: Found, layers: str = ALL) -> str:
    """What the verdict covers, for its line: "logits alone, text cases alone: short, window; not covered: image".

    "" where every peer shows its inside, no cases were required, and all layers were there.
    """
    judged = [j for _, j in inside(found) if j.local]
    parts = [_outside(judged)]
    if asked is not None:
        parts += [_cases(asked, plan, judged)]
    parts += ["one layer of each kind"] if layers == EACH_KIND else []
    return ", ".join(filter(None, parts))


def inside(found: Found) -> Found:
    """The judgements without those of a peer's own generation, where it was judged on other cases too: there it shows
    less than it does elsewhere."""
    others = {j.peer for _, j in found if j.local and j.made is None}
    return [(target, j) for target, j in found if j.made is None or j.peer not in others]


def _outside(judged: Sequence[Judgement]) -> str:
    """What black boxes show; with their names, where other peers show more or others less."""
    seen = {j.peer: j.outside for j in judged}
    words = set(seen.values())
    if len(words) == 1:
        return next(iter(words))
    return ", ".join(f"{what} of {peer}" for peer, what in seen.items() if what)


def _cases(asked: Required, plan: Plan, judged: Sequence[Judgement]) -> str:
    """Which cases every peer was judged on, and which some peer was not."""
    every = {j.peer for j in judged}
    each = {peer: {j.case for j in judged if j.peer == peer} for peer in every}
    names = list(dict.fromkeys(case.name for _, case in plan))
    covered = [name for name in names if every and all(name in cases for cases in each.values())]
    left = [name for name in names if name not in covered]
    kind = "text cases alone" if asked.names is None else "required cases alone"
    return f"{kind}: {_listed(covered)}; not covered: {_listed(left)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
