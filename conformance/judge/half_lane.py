"""The local anchor of a half-precision lane. Bounds and oracles with defects walk beside truth and controls.

Each tap is measured on the way, and the case is judged once it has been walked (`measure/half.py`, `patterns.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from conformance.cases.plan import kind_of, parts_of
from conformance.judge import patterns
from conformance.judge.meeting import Array, Ended, Meeting, Place
from conformance.judge.operations import Operations
from conformance.measure import half, limits
from conformance.measure.distance import Distances
from conformance.measure.finding import Finding
from conformance.measure.half import Measured
from conformance.measure.match import Signature
from conformance.measure.ratio import exactly, kept, not_finite, refused, wider
from conformance.measure.sums import Host, Moments, moments
from conformance.oracle.worst_case import SMALLEST, ceiling
from t5g2ref.config import Config
from t5g2ref.dtypes import DType
from t5g2ref.model import T5Gemma2


class HalfLane:
    """bfloat16 or float16 under the local anchor.

    Args:
        config: of the model, whose attention heads are looked at one by one.
        operations: which taps stand for one operation. Bounds and patterns are of those; None where there are none.
        at_once: whether each tap is judged by itself as soon as it is met; else the whole case is judged at the end.
    """

    def __init__(
        self,
        dtype: DType,
        distances: Distances,
        config: Config,
        operations: Operations | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        self.dtype, self._distances, self._backend = dtype, distances, distances.backend
        self._config, self.limit = config, limits.LIMITS["half"]
        self._operations, self._at_once = operations or None, at_once
        self._measured: list[Measured] = []

    def members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        if self._operations is None:
            return ours
        more = [ceiling(self._backend, self.dtype), *patterns.oracles(self._backend, self.dtype)]
        return [*ours, *(ours[0].with_numerics(nx) for nx in more)]

    def look(self, meeting: Meeting) -> Finding:
        tap, call, peer = meeting.tap, meeting.call, meeting.peer
        finding = refused(tap, call, peer, meeting.truth, meeting.valid, self.dtype)
        self._met(finding)
        if self._operations is not None and peer is not None and wider(tap, peer, self.dtype):
            self._operations.lost(meeting.place)
        keep = kept(tap, meeting.truth, meeting.valid)
        if finding is not None or tap.exact:
            return finding or exactly(tap, call, peer, meeting.truth, keep, self._distances)
        found = self._moments(meeting, keep)
        broken = not_finite(tap, call, peer, self._distances) if not np.isfinite(found.errors[0]).all() else None
        if broken is not None:
            self._met(broken)
            return broken
        tokens = np.argwhere(keep) if keep.ndim else np.zeros((1, 0), int)
        of = Measured(tap, call, found.of(keep.reshape(-1)), tokens)
        self._measured.append(of)
        return half.judged([of], self.dtype)[0][0] if self._at_once else Finding(tap.name, call, "pass")

    def _met(self, finding: Finding | None) -> None:
        if self._operations is not None and finding is not None:
            self._operations.met(finding)

    def _moments(self, meeting: Meeting, keep: Host) -> Moments:
        """The sums of a tap; without bound and patterns where several operations lie before it."""
        tap, single = meeting.tap, self._operations is not None and self._operations.single(meeting.place)
        bound, *faulty = meeting.others if single else [None]
        return moments(
            self._backend,
            tap.token_axes,
            meeting.truth,
            meeting.peer,
            meeting.controls,
            None if tap.name == "loss" else bound,
            patterns.rows(faulty, tap.name) if faulty else list[Array](),
            SMALLEST[self.dtype],
            parts_of(self._config, tap, meeting.truth.size // keep.size),
        )

    def end(self, found: Mapping[Place, Finding]) -> Ended:
        findings, k, unclear = half.judged(self._measured, self.dtype)
        now = {**found, **{(f.call, f.tap): f for f in findings}}
        signatures = patterns.signatures(self._measured)
        for signature in signatures:
            now.update(_blamed(signature, now))
        return Ended(now, k, signatures, unclear)


def _blamed(signature: Signature, found: Mapping[Place, Finding]) -> Iterator[tuple[Place, Finding]]:
    """The finding by which a named defect, or one akin to it, fails the first of its taps; none where one of them fails
    already."""
    places = [p for p in found if fnmatchcase(p[1], signature.tap) or kind_of(p[1]) == signature.tap]
    if not (signature.named or signature.akin) or any(not found[p].passed for p in places):
        return
    detail = signature.part if signature.named else f"akin to a defect: {signature.part}, and something else beside it"
    yield (
        places[0],
        replace(
            found[places[0]],
            status="signature",
            judged=signature.coefficient,
            limit=limits.PATTERN_PART,
            detail=detail,
        ),
    )
