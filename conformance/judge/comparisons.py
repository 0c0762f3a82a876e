"""The comparisons of a run by name: one is a peer on a case of a checkpoint, or its whole exact lane there.

They follow from the plan alone, and so does their order. No comparison needs what another one computed: so they may be
judged in any order, process or machine, and only the report looks at all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from conformance.cases.case import Case
from conformance.judge.judgement import Judgement
from conformance.target import Target

Found = list[tuple[str, Judgement]]
Plan = list[tuple[Target, Case]]
Asks = Callable[[Case], bool]

EXACT = "exact"
"""Stands where a case's name does, for the exact lane."""


class Comparison(NamedTuple):
    """Names of a checkpoint, of a peer, and of a case or EXACT."""

    target: str
    peer: str
    case: str

    def __str__(self) -> str:
        return f"{self.case} of {self.peer} on {self.target}"


def comparisons(targets: Iterable[str], peers: Mapping[str, Asks], plan: Plan, *, exact: bool) -> list[Comparison]:
    """Every comparison of a run in the order of a report: by checkpoint, by peer, the exact lane, then the cases.

    Args:
        peers: a peer's name → whether it is asked for a case. What it is not asked for is no comparison.
        plan: the cases; none where the exact lane alone is wanted.
    """
    return [
        Comparison(target, peer, case)
        for target in targets
        for peer, asks in peers.items()
        for case in (*((EXACT,) if exact else ()), *(c.name for of, c in plan if of.name == target and asks(c)))
    ]


def asks(dtype: str, case: Case, *, generates: bool, prepares: bool) -> bool:
    """Whether a peer is judged on a case: one of its type, and to generate one that can, or that is asked by name.

    Args:
        generates: whether the peer can generate, or was asked to by name.
        prepares: whether it has a processor of its own.
    """
    return (generates or not case.prompts) and (prepares or not case.pictures) and case.asks(dtype)


def in_order(found: Found, order: Sequence[Comparison]) -> Found:
    """The judgements in the order of the comparisons, whoever made them and when; each weight is spoilt once.

    A peer that changes the weights is found out by everyone that opens it: one of these judgements says it all.
    """
    places = {comparison: i for i, comparison in enumerate(order)}
    pairs = {key[:2]: i for key, i in reversed(places.items())}

    def place(item: tuple[str, Judgement]) -> int:
        target, j = item
        return places.get(Comparison(target, j.peer, j.case), pairs[target, j.peer])

    kept: Found = []
    for target, j in sorted(found, key=place):
        spoilt = [(t, other.peer) for t, other in kept if is_spoilt(other)] if is_spoilt(j) else []
        if (target, j.peer) not in spoilt:
            kept.append((target, j))
    return kept


SPOILT = "the peer changed the weights that it was given: nothing judged here counts; let it copy them"


def is_spoilt(judgement: Judgement) -> bool:
    """Whether it says that the peer wrote into weights that others read."""
    return [finding.detail for finding in judgement.exact] == [SPOILT]
