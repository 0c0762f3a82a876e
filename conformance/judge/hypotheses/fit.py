"""How near a peer is to the oracle with some faults in it: by the same ratio that judges it, with that as the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from conformance.cases.plan import kind_of
from conformance.judge.evidence import Evidence, Host
from conformance.judge.hypotheses.oracles import Hypothesis, Oracles, Values
from conformance.measure import limits
from conformance.measure.ratio import Errors, ratios, typical

FAR = 1e12
"""The ratio of what has another shape, or no number where the other has one."""


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
    truth, control = oracles.truth(shown.case, faults), oracles.control(shown.case, faults)
    healthy = oracles.truth(shown.case)
    if truth is None or control is None or healthy is None or truth.keys() != shown.values.keys():
        return Fit(FAR, FAR, FAR)
    found = np.concatenate(list(_ratios(oracles.dtype, shown, truth, control)))
    return Fit(float(found.max()), float(np.median(found)), _left(shown, truth, healthy))


def rest(oracles: Oracles, shown: Evidence, faults: Hypothesis) -> float:
    """Mean logarithm of the tokens' ratios, where the healthy control is the yardstick: 0 for a peer that is there.

    A quick look, which ranks hypotheses: every token that one explains counts, however far the others are.
    """
    truth, healthy, control = oracles.truth(shown.case, faults), oracles.truth(shown.case), oracles.control(shown.case)
    if truth is None or healthy is None or control is None or truth.keys() != shown.values.keys():
        return float(np.log(FAR))
    found = np.concatenate(list(_ratios(oracles.dtype, shown, truth, control, healthy)))
    return float(np.log(np.maximum(found, 1.0)).mean())


def _ratios(
    dtype: str, shown: Evidence, truth: Values, control: Values, center: Values | None = None
) -> Iterator[Host]:
    """For each tap, the tokens' ratios ‖peer − truth‖ / ‖control − center‖; the center is the truth by default."""
    center = truth if center is None else center
    errors = {place: _errors(shown.values[place], truth[place], control[place], center[place]) for place in truth}
    for kind in dict.fromkeys(kind_of(name) for _, name in errors):
        parts = [found for (_, name), found in errors.items() if kind_of(name) == kind and found is not None]
        usual = typical(parts) if parts else 0.0
        for (_, name), found in errors.items():
            if kind_of(name) == kind:
                yield (
                    np.full(1, FAR)
                    if found is None
                    else np.nan_to_num(ratios(found, dtype, usual), nan=FAR, posinf=FAR)
                )


def _errors(peer: Host, truth: Host, control: Host, center: Host) -> Errors | None:
    """The errors of one tap; None where there is nothing to subtract. No number on both sides is no difference."""
    if peer.shape != truth.shape or not peer.size:
        return None
    if not truth.shape == control.shape == center.shape:  # of a fault that changes the shape: one rounding is the least
        control = center = truth
    rows = [x.reshape(-1, x.shape[-1]) for x in (peer, truth, control, center)]
    broken = ~np.isfinite(rows[0])
    if (broken != ~np.isfinite(rows[1])).any():
        return None
    peer, truth, control, center = (np.where(broken | ~np.isfinite(x), 0.0, x) for x in rows)
    found = [np.linalg.norm(x, axis=1) for x in (truth, peer - truth, control - center)]
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
