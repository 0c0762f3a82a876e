"""Names two catalogued defects that a culprit has at once, where it is no single one.

Small errors add up: the pattern of both is the sum of their patterns. Where that does not fit, the oracle is walked
with both faults, for those that alone explain most. Where several pairs fit, each is walked through the whole case; one
is named only where every other is contradicted at more taps.
Each of the two is needed, since neither fits alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from conformance.defects.injection import Fault, Injection, joined
from conformance.judge.faulty_walk import FaultyWalk
from conformance.measure import limits
from conformance.measure.match import Signature

Host = np.ndarray[Any, Any]
Tried = tuple[Fault, Host, Signature]
"""A fault, the oracle's value with it, and how that alone fits."""

Judge = Callable[[str, Host], Signature]
Fit = tuple[tuple[str, str], Signature, Injection]
MOST = 24  # pairs that are walked through a case; of more, none is named
FIRST = 3  # faults that are walked with each of the others


def named_pair(
    tried: Sequence[Tried], clean: Host, judge: Judge, walk: FaultyWalk | None, least: float
) -> list[Signature]:
    """A signature for each of the two; [] where no pair fits, or several do.

    Args:
        tried: the faults that were held against the peer alone.
        judge: makes a signature of a value.
        walk: walks the oracle with faults; None where that takes too long.
        least: the smallest misfit that means anything.
    """
    able = [t for t in tried if t[2].verdict != "no power" and t[1].shape == clean.shape]
    fits = list(_sums(able, clean, judge)) if clean.dtype != bool else []
    if not fits and walk is not None:
        fits = list(_walked(able, judge, walk))
    best = min((_misfit(s) for _, s, _ in fits), default=0.0)
    near = [fit for fit in fits if _misfit(fit[1]) <= limits.NAME_ALIKE * max(least, best)]
    if len(near) > MOST:  # nobody could say that the ones left out are not as good
        return []
    if walk is not None and len({ids for ids, _, _ in near}) > 1:
        near = _told_apart(near, walk)
    if len({ids for ids, _, _ in near}) != 1:
        return []
    (one, other), signature, _ = near[0]
    return [replace(signature, defect=one, beside=other), replace(signature, defect=other, beside=one)]


def _told_apart(fits: Sequence[Fit], walk: FaultyWalk) -> list[Fit]:
    """Those that contradict the peer at the fewest taps of the whole case."""
    against = [walk.contradicted(both) for _, _, both in fits]
    return [fit for fit, count in zip(fits, against, strict=True) if count == min(against)]


def _sums(able: Sequence[Tried], clean: Host, judge: Judge) -> Iterator[Fit]:
    """The pairs whose patterns add up to the peer's error."""
    finite = [t for t in able if np.isfinite(t[1]).all()]
    for (a, first, _), (b, second, _) in combinations(finite, 2):
        if a.id != b.id and (signature := judge(f"{a.id} + {b.id}", first + (second - clean))).named:
            yield _ids(a, b), signature, joined(a.inject, b.inject)


def _walked(able: Sequence[Tried], judge: Judge, walk: FaultyWalk) -> Iterator[Fit]:
    """The pairs with which the oracle has the peer's value."""
    ordered = sorted(able, key=lambda t: t[2].residual)
    for i, (a, _, _) in enumerate(ordered[:FIRST]):
        for b, _, _ in ordered[i + 1 :]:
            both = joined(a.inject, b.inject)
            value = walk.value(both) if a.id != b.id else None
            if value is not None and (signature := judge(f"{a.id} + {b.id}", value)).named:
                yield _ids(a, b), signature, both


def _ids(a: Fault, b: Fault) -> tuple[str, str]:
    one, other = sorted((a.id, b.id))
    return one, other


def _misfit(s: Signature) -> float:
    return float(np.hypot(s.residual, s.coefficient - 1))
