"""The patterns of rounding defects over all cases of a peer, where none of its cases had enough tokens to see one.

A GELU constant with a digit too few moves a bfloat16 value by a twentieth of its rounding. In one case that is lost.
Coefficients of many cases, weighted by their certainty, have the error that all tokens together give.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conformance.cases.plan import kind_of
from conformance.judge.judgement import Judgement
from conformance.judge.patterns import verdict_of
from conformance.measure import limits
from conformance.measure.finding import Finding
from conformance.measure.match import Signature
from t5g2ref.dtypes import HALF

TOGETHER = "together"
"""Stands where a case's name does, for what all cases say together."""

Judged = Sequence[tuple[str, Judgement]]


def together(found: Judged) -> list[tuple[str, Judgement]]:
    """(checkpoint, judgement) of each peer in a half type that was judged on two cases or more.

    Args:
        found: (checkpoint, judgement) of all cases.
    """
    groups: dict[tuple[str, str, str], list[Judgement]] = {}
    for target, j in found:
        if j.dtype in HALF and j.named:
            groups.setdefault((target, j.peer, j.dtype), []).append(j)
    return [
        (target, _over_all(peer, dtype, judgements))
        for (target, peer, dtype), judgements in groups.items()
        if len(judgements) > 1
    ]


def _over_all(peer: str, dtype: str, judgements: Sequence[Judgement]) -> Judgement:
    seen = [s for j in judgements for s in j.named]
    plain = [d for d in dict.fromkeys(s.defect for s in seen) if not _spoken_of(d, seen)]
    pooled = [_pooled([s for s in seen if s.defect == d]) for d in plain]
    return Judgement(peer, TOGETHER, exact=[_finding(s, len(judgements)) for s in pooled], dtype=dtype, named=pooled)


def _spoken_of(defect: str, seen: Sequence[Signature]) -> bool:
    """Whether a case says more than absent, or no power. Its own judgement counts then."""
    return any(s.defect == defect and s.verdict not in ("absent", "no power") for s in seen)


def _pooled(found: Sequence[Signature]) -> Signature:
    """One defect's coefficients as one, weighted by the inverse of their variance."""
    sure = [s for s in found if np.isfinite(s.error) and s.error > 0]
    kinds = dict.fromkeys(kind_of(s.tap) for s in sure or found)
    place = next(iter(kinds)) if len(kinds) == 1 else f"{len(kinds)} kinds of tap"
    if not sure:
        return Signature(found[0].defect, place, 0.0, float("inf"), 1.0, "no power")
    weights = np.array([s.error**-2 for s in sure])
    coefficient = float(np.dot(weights, [s.coefficient for s in sure]) / weights.sum())
    error = float(weights.sum() ** -0.5)
    residual = float(np.dot(weights, [s.residual for s in sure]) / weights.sum())
    return Signature(
        found[0].defect, place, coefficient, error, residual, verdict_of(coefficient, 0.0, error, error, True)
    )


def _finding(s: Signature, cases: int) -> Finding:
    """The pooled pattern as a row: it fails where the defect is there, or something akin to it."""
    detail = f"{s.part}, over {cases} cases"
    status = "signature" if s.named or s.akin else "pass"
    return Finding(s.tap, 0, status, judged=s.coefficient, limit=limits.PATTERN_PART, detail=detail)
