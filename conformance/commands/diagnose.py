"""Diagnoses every black box that deviates, from what its judgements kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

from conformance.cases import catalogue
from conformance.cases.case import Case
from conformance.judge.comparisons import Found
from conformance.judge.evidence import Evidence
from conformance.judge.hypotheses.diagnosis import Diagnosis, diagnosed
from conformance.judge.judgement import Judgement
from conformance.target import Target
from t5g2ref.config import Config
from t5g2ref.dtypes import DType


def diagnoses(
    targets: list[Target],
    found: Found,
    say: Callable[[str], None] = lambda _: None,
    cases_of: Callable[[Config], list[Case]] = catalogue.build,
) -> list[Diagnosis]:
    """One diagnosis for each peer and checkpoint where a black box deviates.

    Args:
        cases_of: makes the cases that were judged, where they are not the catalogue's. The catalogue stays beside them:
            one of its cases may tell two hypotheses apart.
    """
    return [
        _of(
            target,
            list({c.name: c for c in (*catalogue.build(target.config), *cases_of(target.config))}.values()),
            peer,
            [j for name, j in found if (name, j.peer) == (target.name, peer)],
            say,
        )
        for target in targets
        for _, peer in puzzling([target.name], found)
    ]


def puzzling(targets: Iterable[str], found: Found) -> list[tuple[str, str]]:
    """(checkpoint, peer) of every black box that deviates."""
    return [
        (target, peer)
        for target in targets
        for peer in dict.fromkeys(j.peer for name, j in found if name == target and j.outside and _off(j))
    ]


def _off(judgement: Judgement) -> bool:
    """Whether it deviates by what it computes, and not alone by what its `generate` makes of that."""
    return judgement.deviates and any(not f.passed for f in (*judgement.local, *judgement.cumulative))


def _of(target: Target, cases: list[Case], peer: str, judged: list[Judgement], say: Callable[[str], None]) -> Diagnosis:
    """The diagnosis of one peer on one checkpoint."""
    say(f"hypotheses: {peer}")
    shown: list[Evidence] = [replace(j.evidence, deviates=_off(j)) for j in judged if j.evidence is not None]
    cases = [*cases, *(j.made for j in judged if j.made is not None)]
    dtype = cast(DType, next(j.dtype for j in judged if j.evidence is not None))
    skipped = [j.case for j in judged if j.skipped]
    return diagnosed(peer, target, dtype, cases, shown, skipped)
