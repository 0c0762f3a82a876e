"""How near a peer is to the oracle with some faults in it: by the same ratio that judges it, with that as the truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from conformance.cases.plan import kind_of
from conformance.judge.evidence import Evidence, Host, Place
from conformance.judge.hypotheses.oracles import Hypothesis, Oracles, Values
from conformance.measure import limits
from conformance.measure.ratio import Errors, ratios, typical

FAR = 1e12
"""The ratio of what has another shape, or no number where the other has one."""


LUCK = 100.0
"""Times the limit: so far off, another control is asked. The error of one may be small by luck, but not by more."""


@dataclass(frozen=True)
class Fit:
    """A peer held against a hypothesis in one case.

    Args:
        worst, median: of the tokens' ratios.
        left: ‖peer − oracle with the faults‖ / ‖peer − oracle‖.
    """

    worst: float
    median: float
    left: float

    @property
    def near(self) -> bool:
        """Whether the peer is as near to it as its number type has to be."""
        return max(self.worst, self.median) <= limits.LIMITS["cumulative"]

    @property
    def explains(self) -> bool:
        """Whether it also leaves little of what the peer is off. A fault of rounding makes its own control coarse, and
        being near to that says nothing."""
        return self.near and self.left <= limits.NAME_LEFT


def fit(oracles: Oracles, shown: Evidence, faults: Hypothesis) -> Fit:
    """How near the peer is to the oracle with these faults."""
    truth, healthy = oracles.truth(shown.case, faults), oracles.truth(shown.case)
    if truth is None or healthy is None or truth.keys() != shown.values.keys():
        return Fit(FAR, FAR, FAR)
    if (control := oracles.control(shown.case, faults)) is None:
        return Fit(FAR, FAR, FAR)
    found = np.concatenate(list(_ratios(oracles.dtype, shown, truth, [control])))
    if limits.LIMITS["cumulative"] < found.max() <= LUCK * limits.LIMITS["cumulative"]:
        found = np.concatenate(list(_ratios(oracles.dtype, shown, truth, oracles.controls(shown.case, faults))))
    worst = float(found.max())
    if worst > limits.LIMITS["cumulative"] and any(fault.jumps for fault in faults):
        without = oracles.truth(shown.case, tuple(fault for fault in faults if not fault.jumps))
        jumped = _jumped(shown, truth, without)
        if jumped.shape == found.shape:  # else there is a tap with nothing to subtract, which no rounding makes
            worst = float(np.minimum(found, jumped).max())
    return Fit(worst, float(np.median(found)), _left(shown, truth, healthy))


def _jumped(shown: Evidence, truth: Values, without: Values | None) -> Host:
    """(tokens,): each token's error beside the largest effect of the faults that jump, which a last bit may move it by;
    at the limit where both are equal."""
    if without is None or any(
        v.shape != without[p].shape or v.shape != shown.values[p].shape for p, v in truth.items()
    ):
        return np.full(1, FAR)
    beside = []
    for place in _by_kind(truth):
        effect = _norms(truth[place] - without[place])
        beside.append(_norms(shown.values[place] - truth[place]) / (effect.max(initial=0.0) or 1.0 / FAR))
    found: Host = np.nan_to_num(np.concatenate(beside), nan=FAR, posinf=FAR)
    return limits.LIMITS["cumulative"] * found


def _by_kind(places: Iterable[Place]) -> list[Place]:
    """The places, those of one kind of tap together: the order of all numbers by token."""
    places = list(places)
    kinds = list(dict.fromkeys(kind_of(name) for _, name in places))
    return sorted(places, key=lambda place: kinds.index(kind_of(place[1])))


def _norms(x: Host) -> Host:
    """(tokens,): of each row."""
    return np.asarray(np.linalg.norm(x.reshape(-1, x.shape[-1]), axis=1))


def rest(oracles: Oracles, shown: Evidence, faults: Hypothesis) -> float:
    """Mean logarithm of the tokens' ratios, where the healthy control is the yardstick: 0 for a peer that is there.

    A quick look, which ranks hypotheses: every token that one explains counts, however far the others are.
    """
    truth, healthy, control = oracles.truth(shown.case, faults), oracles.truth(shown.case), oracles.control(shown.case)
    if truth is None or healthy is None or control is None or truth.keys() != shown.values.keys():
        return float(np.log(FAR))
    found = np.concatenate(list(_ratios(oracles.dtype, shown, truth, [control], healthy)))
    return float(np.log(np.maximum(found, 1.0)).mean())


def _ratios(
    dtype: str, shown: Evidence, truth: Values, controls: Sequence[Values], center: Values | None = None
) -> Iterator[Host]:
    """For each tap, the tokens' ratios ‖peer − truth‖ / ‖control − center‖, of the control that is farthest off; the
    center is the truth by default."""
    center = truth if center is None else center
    errors = {p: _errors(shown.values[p], truth[p], [c[p] for c in controls], center[p]) for p in truth}
    parts = defaultdict[str, list[Errors]](list)
    for (_, name), found in errors.items():
        if found is not None:
            parts[kind_of(name)].append(found)
    usual = {kind: typical(members) for kind, members in parts.items()}
    for place in _by_kind(errors):
        if (found := errors[place]) is None:
            yield np.full(1, FAR)
        else:
            yield np.nan_to_num(ratios(found, dtype, usual[kind_of(place[1])]), nan=FAR, posinf=FAR)


def _errors(peer: Host, truth: Host, controls: Sequence[Host], center: Host) -> Errors | None:
    """The errors of one tap; None where there is nothing to subtract. No number on both sides is no difference."""
    if peer.shape != truth.shape or not peer.size:
        return None
    if any(truth.shape != x.shape for x in (*controls, center)):  # a fault changes the shape: one rounding is the least
        controls, center = [truth], truth
    rows = [x.reshape(-1, x.shape[-1]) for x in (peer, truth, center, *controls)]
    broken = ~np.isfinite(rows[0])
    if (broken != ~np.isfinite(rows[1])).any():
        return None
    peer, truth, center, *controls = (np.where(broken | ~np.isfinite(x), 0.0, x) for x in rows)
    legal = np.max([np.linalg.norm(control - center, axis=1) for control in controls], axis=0)
    found = [np.linalg.norm(truth, axis=1), np.linalg.norm(peer - truth, axis=1), legal]
    return Errors(np.stack(found), truth.shape[1], np.ones(len(truth), bool))


def _left(shown: Evidence, truth: Values, healthy: Values) -> float:
    """How much of what the peer is off is left."""
    off = [_distance(value, healthy[place]) for place, value in shown.values.items() if place in healthy]
    rest = [_distance(value, truth[place]) for place, value in shown.values.items()]
    return float(np.linalg.norm(rest) / (np.linalg.norm(off) or 1.0))


def _distance(a: Host, b: Host) -> float:
    """The distance of numbers that both have; large where the shapes differ."""
    if a.shape != b.shape:
        return FAR
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.linalg.norm(np.where(both, a - b, 0.0))) + float((np.isfinite(a) != np.isfinite(b)).any()) * FAR
