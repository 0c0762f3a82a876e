"""The local walk of a half-precision lane: with bounds and oracles with defects beside truth and controls."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from conformance.cases.plan import kind_of
from conformance.judge import patterns
from conformance.judge.walk import Comparison, Found
from conformance.measure import half
from conformance.measure.finding import Finding
from conformance.measure.half import Measured
from conformance.measure.match import Signature
from conformance.measure.ratio import exactly, kept, not_finite, refused
from conformance.measure.sums import moments
from conformance.oracle.worst_case import SMALLEST, ceiling
from t5g2ref.model import T5Gemma2
from t5g2ref.taps import Tap


class HalfComparison(Comparison):
    """The local walk of a half-precision lane: with bounds and oracles with defects beside truth and controls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._measured: list[Measured] = []

    def _members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        """Bounds and patterns hold for single operations, so only where the peer shows every tap."""
        if self._partial:
            return ours
        more = [ceiling(self._backend, self._dtype), *patterns.oracles(self._backend, self._dtype)]
        return [*ours, *(ours[0].with_numerics(nx) for nx in more)]

    def _examined(self, tap: Tap, call: int, given: Any, values: list[Any], valid: Any) -> Finding:
        truth, others = values[0], values[1 + self._controls :]
        finding = refused(tap, call, given, truth, valid, self._dtype)
        keep = kept(tap, truth, valid)
        if finding is not None or tap.exact:
            return finding or exactly(tap, call, given, truth, keep, self._distances)
        bound, *faulty = others or [None]
        shown = patterns.rows(faulty, tap.name) if faulty else []
        found = moments(
            self._backend,
            tap.token_axes,
            truth,
            given,
            values[1 : 1 + self._controls],
            None if tap.name == "loss" else bound,
            shown,
            SMALLEST[self._dtype],
        )
        broken = not_finite(tap, call, given, self._distances) if not np.isfinite(found.errors[0]).all() else None
        if broken is not None:
            return broken
        of = Measured(tap, call, found.of(keep.reshape(-1)), np.argwhere(keep) if keep.ndim else np.zeros((1, 0), int))
        self._measured.append(of)
        return half.judged([of], self._dtype)[0][0] if self._until else Finding(tap.name, call, "pass")

    def _handed_on(self, given: Any, values: list[Any], usable: bool) -> list[Any]:
        """Where the peer's value is of no use, bounds and oracles with defects go on with the truth's."""
        if usable:
            return super()._handed_on(given, values, usable)
        own = values[: 1 + self._controls]
        return [*own, *[values[0]] * (len(values) - len(own))]

    def _ended(self) -> Found:
        findings, limits, unclear = half.judged(self._measured, self._dtype)
        self._found |= {(f.call, f.tap): f for f in findings}
        signatures = patterns.signatures(self._measured)
        for signature in signatures:
            self._blame(signature)
        ended = super()._ended()
        return Found(ended.findings, limits, signatures, unclear, ended.logits, ended.masks)

    def _blame(self, signature: Signature) -> None:
        """A defect that was named fails the first of its taps, if nothing else did."""
        places = [p for p in self._found if fnmatchcase(p[1], signature.tap) or kind_of(p[1]) == signature.tap]
        if not signature.named or any(not self._found[p].passed for p in places):
            return
        first = next((call, tap.name) for call, tap in self._plan if (call, tap.name) in places)
        size, where = f"{signature.coefficient:.2f} ± {signature.error:.2f}", signature.tap
        self._found[first] = replace(
            self._found[first],
            status="signature",
            judged=signature.coefficient,
            limit=patterns.NAMED[0],
            detail=f"{size} of the pattern of {signature.defect} at {where}",
        )
