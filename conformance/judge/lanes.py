"""Two lanes that judge by truth and controls: local float32 by the worst token, cumulative by the median token.

Local float32 also holds every element against its worst-case bound, which walks beside truth and controls.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from conformance.cases.plan import kind_of
from conformance.judge.meeting import Ended, Meeting, Place
from conformance.judge.operations import Operations
from conformance.measure import limits
from conformance.measure.accumulated import unclear_kinds, usual_errors
from conformance.measure.bound import above
from conformance.measure.distance import Distances
from conformance.measure.finding import Finding
from conformance.measure.ratio import Errors, errors_of, middle
from conformance.measure.ratio import values as judged_values
from conformance.oracle.worst_case import SMALLEST, ceiling
from t5g2ref.dtypes import DType
from t5g2ref.model import T5Gemma2
from t5g2ref.taps import Tap

COPIES = ("keys", "values", "cross_keys", "cross_values", "inputs_embeds")
"""Last parts of the names of taps that hold what was shown before: no bit of it may change."""


class SingleLane:
    """float32 under the local anchor: a tap is judged on the spot, by its worst token and its worst element.

    Args:
        operations: which taps stand for one operation. Bounds are of those; None where there are none.
    """

    def __init__(self, dtype: DType, distances: Distances, operations: Operations | None = None) -> None:
        self.dtype, self._distances, self._operations = dtype, distances, operations
        self.limit = limits.LIMITS["local"]
        self._unclear: dict[str, None] = {}

    def members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        bounds = [ceiling(self._distances.backend, self.dtype)] if self._operations else []
        return [*ours, *(ours[0].with_numerics(nx) for nx in bounds)]

    def look(self, meeting: Meeting) -> Finding:
        found = measured(meeting, self.dtype, self._distances)
        if isinstance(found, Finding):
            if self._operations is not None:
                self._operations.met(found)
            return found
        if middle(np.sort(found.legal)) > limits.UNCLEAR_ERROR:
            self._unclear[kind_of(meeting.tap.name)] = None
        finding = judged_values(meeting.tap, meeting.call, found, self.dtype, self.limit, "worst")
        single = self._operations is not None and self._operations.single(meeting.place)
        if not meeting.others or meeting.tap.name == "loss" or not single:
            return finding
        return self._bounded(finding, meeting, found)

    def _bounded(self, finding: Finding, meeting: Meeting, found: Errors) -> Finding:
        """The finding with the largest |error| / bound, by which it fails where the ratio passed."""
        tap, (bound,) = meeting.tap, meeting.others
        bound = None if tap.name.rsplit(".", 1)[-1] in COPIES else bound
        backend, smallest = self._distances.backend, SMALLEST[self.dtype]
        return above(finding, tap, meeting.peer, meeting.truth, bound, found.keep, smallest, backend)

    def end(self, found: Mapping[Place, Finding]) -> Ended:
        return Ended(unclear=list(self._unclear))


class QuantisedLane:
    """Any type of a quantised engine under the local anchor: a tap is judged on the spot, by its median token and by
    its worst one.

    Where a layer is quantised, the controls' error is that of the rounded weights. A right engine's is another of that
    size; bounds and patterns, which are of one rounding to the type, say nothing there.
    """

    def __init__(self, dtype: DType, distances: Distances) -> None:
        self.dtype, self._distances = dtype, distances
        self.limit = limits.LIMITS["local"]
        self._unclear: dict[str, None] = {}

    def members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        return ours

    def look(self, meeting: Meeting) -> Finding:
        found = measured(meeting, self.dtype, self._distances)
        if isinstance(found, Finding):
            return found
        if middle(np.sort(found.legal)) > limits.UNCLEAR_ERROR:
            self._unclear[kind_of(meeting.tap.name)] = None
        many = found.found.shape[1] >= limits.FEW_NUMBERS
        if many:
            finding = judged_values(meeting.tap, meeting.call, found, self.dtype, limits.LIMITS["half"], "median")
            if not finding.passed:
                return finding
        return judged_values(meeting.tap, meeting.call, found, self.dtype, self.limit, "worst")

    def end(self, found: Mapping[Place, Finding]) -> Ended:
        return Ended(unclear=list(self._unclear))


class CumulativeLane:
    """Any type under the cumulative anchor: a tap is judged at the end, by its median token.

    Only then is it known how large an error is typical of the tap over all calls.

    Args:
        each: whether every token is judged as well, by the same limit: of a black box, which shows nothing else. Where
            rounding could hide anything, its taps are unclear.
    """

    def __init__(self, dtype: DType, distances: Distances, *, each: bool = False) -> None:
        self.dtype, self._distances, self._each = dtype, distances, each
        self.limit = limits.LIMITS["cumulative"]
        self._pending: list[tuple[Tap, int, Errors]] = []

    def members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        return ours

    def look(self, meeting: Meeting) -> Finding:
        found = measured(meeting, self.dtype, self._distances)
        if isinstance(found, Finding):
            return found
        self._pending.append((meeting.tap, meeting.call, found))
        return Finding(meeting.tap.name, meeting.call, "pass")

    def end(self, found: Mapping[Place, Finding]) -> Ended:
        """Judge every tap by the error that is typical of it."""
        changed = {}
        for (tap, call, errors), most in zip(self._pending, usual_errors(self._pending), strict=True):
            finding = judged_values(tap, call, errors, self.dtype, self.limit, "median", most)
            if self._each and finding.passed:
                finding = judged_values(tap, call, errors, self.dtype, self.limit, "worst", most)
            changed[call, tap.name] = finding
        return Ended(changed, unclear=unclear_kinds(self._pending) if self._each else [])


def measured(meeting: Meeting, dtype: DType, distances: Distances) -> Finding | Errors:
    """The errors of a tap; its finding, where it cannot be compared, is a mask, or is not finite."""
    m = meeting
    return errors_of(m.tap, m.call, m.peer, m.truth, m.controls, m.valid, dtype, distances)
