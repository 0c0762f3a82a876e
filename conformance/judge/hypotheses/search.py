"""Looks for the faults with which the oracle computes what a black box shows: one, or up to four together.

It begins with one case in which the peer deviates. Every fault is put into the oracle there, and those with which the
peer is as near as its type has to be go on to the other cases. Where one more case needs another fault, it is added in
the same way. Where no single fault explains a case, pairs are tried: first those whose effects add up to the peer's
error, then each fault beside the few that explain most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from conformance.defects.injection import Fault
from conformance.judge.evidence import Evidence, Host
from conformance.judge.hypotheses.fit import FAR, Fit, fit, rest
from conformance.judge.hypotheses.oracles import Hypothesis, Oracles, ids_of, with_fault

MOST_FAULTS = 4  # of one hypothesis
MOST_TRIED = 2000  # hypotheses that are held against a case; then no more are begun
STARTS = 4  # cases that a search may begin with
LOOKED_AT = 24  # of the single faults with the least rest, how many are held against their own control
CLOSE = 3.0  # mean logarithm of ratios: a peer that is explained is at 1, one that is not at many more
PAIRS = 48  # of pairs whose effects add up best, how many are run
BASES = 6  # single faults that every other one is tried beside
BRANCHES = 6  # hypotheses near in equally many cases that are followed


@dataclass
class Search:
    """A search over the cases of one peer on one checkpoint.

    Args:
        shown: by case; those that deviate come first, the smallest before the larger.
        faults: that may be in the peer.
        costly: cases in which only the faults are tried that they declare to expose.
    """

    oracles: Oracles
    shown: Mapping[str, Evidence]
    faults: Sequence[Fault]
    costly: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _fits: dict[tuple[str, tuple[str, ...]], Fit] = field(default_factory=dict)
    _tried: int = 0

    def found(self) -> list[Hypothesis]:
        """The hypotheses of the fewest faults with which the peer is near in every case; none where there is none."""
        telling = [name for name, shown in self.shown.items() if shown.deviates]
        for wide in (False, True):
            for start in telling[:STARTS]:
                if found := self._from([start, *(name for name in self.shown if name != start)], wide):
                    return found
        return []

    def _from(self, order: Sequence[str], wide: bool) -> list[Hypothesis]:
        """What is found when the first case of the order is the one to begin with."""
        level: list[Hypothesis] = [()]
        while level and len(level[0]) < MOST_FAULTS and self._tried < MOST_TRIED:
            level = self._next(level, order, wide)
            near = [found for faults in level if (found := self.ordered(faults)) is not None]
            if solved := [faults for faults in near if self.needed(faults)]:
                least = min(len(ids_of(faults)) for faults in solved)
                return [faults for faults in solved if len(ids_of(faults)) == least]
        return []

    def _next(self, level: Sequence[Hypothesis], order: Sequence[str], wide: bool) -> list[Hypothesis]:
        """What comes of the hypotheses with more faults. Those that are near in most cases are followed first, and the
        others only where nothing comes of them."""
        near = {faults: sum(self.fit(case, faults).near for case in order) for faults in level}
        for most in sorted(set(near.values()), reverse=True):
            more = dict[tuple[str, ...], Hypothesis]()
            for faults in [f for f in level if near[f] == most][:BRANCHES]:
                case = next((name for name in order if not self.fit(name, faults).near), None)
                for found in self._more(faults, case, wide) if case is not None else ():
                    more.setdefault(tuple(fault.key for fault in found), found)
            if more:
                return sorted(more.values(), key=len)
        return []

    def fit(self, case: str, faults: Hypothesis) -> Fit:
        """How near the peer is to the oracle with these faults in a case."""
        key = case, tuple(fault.key for fault in faults)
        if key not in self._fits:
            self._fits[key] = fit(self.oracles, self.shown[case], faults)
            self._tried += 1
        return self._fits[key]

    def whole(self, faults: Hypothesis) -> bool:
        """Whether the peer is near it in every case."""
        return all(self.fit(case, faults).near for case in self.shown)

    def ordered(self, faults: Hypothesis) -> Hypothesis | None:
        """The same faults in the order in which the peer is near them in every case; None where it is in none.

        A window that is off by one and then used for both stacks is not what comes of them the other way round.
        """
        return next((order for order in permutations(faults) if self.whole(order)), None)

    def worst(self, faults: Hypothesis) -> float:
        """The worst ratio of any token in any case."""
        return max(self.fit(case, faults).worst for case in self.shown)

    def needed(self, faults: Hypothesis) -> bool:
        """Whether leaving any of them out makes the rest worse than the peer's type has to be, in any order."""
        return all(self.ordered(tuple(f for f in faults if f is not one)) is None for one in faults)

    def _more(self, base: Hypothesis, case: str, wide: bool) -> Iterator[Hypothesis]:
        """Hypotheses with one fault more, or else with two, that explain the case; `wide`: each beside the best."""
        ranked = self._ranked(base, case)
        first = [with_fault(base, fault) for fault in _near(ranked)]
        if fitting := [faults for faults in first if self.fit(case, faults).explains]:
            yield from fitting
            return
        if len(base) + 2 > MOST_FAULTS:
            return
        if fitting := [faults for faults in self._adding(base, case) if self.fit(case, faults).explains]:
            yield from fitting
            return
        for _, fault in ranked[:BASES] if wide else ():
            if self._tried >= MOST_TRIED:
                return
            beside = with_fault(base, fault)
            second = [with_fault(beside, other) for _, other in self._ranked(beside, case)[:3]]
            yield from (faults for faults in second if self.fit(case, faults).explains)

    def _beside(self, base: Hypothesis, case: str) -> list[Fault]:
        """The faults that may come to the base in a case: of other defects than it has."""
        ids, only = ids_of(base), self.costly.get(case)
        return [f for f in self.faults if f.id not in ids and (only is None or f.id in only)]

    def _ranked(self, base: Hypothesis, case: str) -> list[tuple[float, Fault]]:
        """Each fault with what it leaves beside the base, the least first."""
        shown = self.shown[case]
        ranked = [(rest(self.oracles, shown, with_fault(base, f)), f) for f in self._beside(base, case)]
        self._tried += len(ranked)
        return sorted(ranked, key=lambda pair: (pair[0], pair[1].key))

    def _adding(self, base: Hypothesis, case: str) -> list[Hypothesis]:
        """The pairs whose effects, added up, come nearest to the peer's error."""
        faults, effects, error = self._effects(base, case)
        if len(faults) < 2:
            return []
        i, j = np.triu_indices(len(faults), 1)
        left = _left(effects, error, i, j)
        return [with_fault(base, faults[i[k]], faults[j[k]]) for k in np.argsort(left, kind="stable")[:PAIRS]]

    def _effects(self, base: Hypothesis, case: str) -> tuple[list[Fault], Host, Host]:
        """The faults that change anything here, their effects (faults, tokens, features), and the peer's error."""
        shown, clean = self.shown[case], self.oracles.truth(case, base)
        if clean is None or any(v.shape != shown.values[p].shape for p, v in clean.items()):
            return [], np.zeros(0), np.zeros(0)
        chosen, effects = list[Fault](), list[Host]()
        places = [p for p in clean if np.isfinite(shown.values[p]).all()]
        for fault in self._beside(base, case):
            values = self.oracles.truth(case, with_fault(base, fault))
            if values is None or any(p not in values or values[p].shape != clean[p].shape for p in places):
                continue
            effect = [values[p] - clean[p] for p in places]
            if all(np.isfinite(e).all() for e in effect) and any(e.any() for e in effect):
                chosen.append(fault)
                effects.append(_flat(effect))
        return chosen, np.array(effects), _flat([shown.values[p] - clean[p] for p in places])


def _near(ranked: Sequence[tuple[float, Fault]]) -> list[Fault]:
    """The faults that may explain a case: those that leave hardly more than the best. A fault of rounding leaves more
    than its own control allows, so where the best leaves much, more are looked at."""
    most = max(CLOSE, ranked[0][0] + CLOSE) if ranked else 0.0
    return [fault for left, fault in ranked[:LOOKED_AT] if left <= most]


def _flat(blocks: Sequence[Host]) -> Host:
    """(tokens, features) of several calls, in one; narrower blocks are filled with zeros."""
    rows = [block.reshape(-1, block.shape[-1]) for block in blocks] or [np.zeros((0, 1))]
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows])


def _left(effects: Host, error: Host, i: Host, j: Host) -> Host:
    """(pairs,): mean over tokens of log ‖error − effect i − effect j‖ / ‖error‖."""
    total = np.zeros(len(i))
    for token in range(error.shape[0]):
        of = effects[:, token]
        gram, along, size = of @ of.T, of @ error[token], float(error[token] @ error[token])
        square = np.diag(gram)
        left = size - 2 * (along[i] + along[j]) + square[i] + square[j] + 2 * gram[i, j]
        total += np.log(np.maximum(left, size * 1e-12 + 1.0 / FAR))
    return total
