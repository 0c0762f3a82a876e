"""Is the diagnosis of a black box any good? Faults are put into a peer that shows logits alone, and have to be named.

The peer takes its sums in an order that no control has, so that no bit of it is ours. A diagnosis is right where the
faults that were put in are among what it says, alone or with others that the inputs do not tell apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from conformance.activations import Dump
from conformance.cases import catalogue as case_list
from conformance.cases.case import Case
from conformance.cases.least import LOGITS
from conformance.defects.all import FAULTS
from conformance.defects.injection import Fault, joined
from conformance.judge.evidence import Evidence, evidence
from conformance.judge.hypotheses.diagnosis import differ
from conformance.judge.hypotheses.fit import fit
from conformance.judge.hypotheses.oracles import Hypothesis, Oracles, candidates, ids_of
from conformance.judge.hypotheses.search import Search
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.legal import LEGAL
from conformance.target import Target
from t5g2ref.dtypes import DType

SEED = 20261126  # of the pairs
DRAWN = 200  # pairs
LANE: DType = "float32"
NAMED, AMONG, SAME, HIDDEN, UNKNOWABLE = "named", "named among others", "the same as", "hidden", "not to be known"
MISSED, WRONG = "not named", "wrong name"
GOOD = (NAMED, AMONG, SAME)
"""What may come of a trial: named; named with others that no input here tells apart; something that is the same in
every case of the catalogue; nothing that logits show; a value that no oracle can know, and no name for it."""


@dataclass(frozen=True)
class Told:
    """What the diagnosis made of one fault or one pair.

    Args:
        keys: of the faults that were put in.
        found: the sets of defects that it named.
        what: one of the words above.
    """

    keys: tuple[str, ...]
    what: str
    found: tuple[tuple[str, ...], ...] = ()
    seconds: float = 0.0

    def line(self) -> str:
        """It in words."""
        return f"{' + '.join(self.keys)}: {self.what}; found {' or '.join(map(' and '.join, self.found)) or 'nothing'}"


def singles() -> list[Fault]:
    """Every catalogued fault of a float32 peer that is there from its first run on, each variant once."""
    chosen = {(f.id, f.variant): f for f in FAULTS if f.catalogued and f.lane == LANE and not f.later and not f.beside}
    return list(chosen.values())


def _of_tiles(fault: Fault) -> bool:
    """Whether it begins at a tile of keys, which other blocks of queries cut elsewhere: no oracle can know where."""
    return fault.id in ("D73", "D79")


class BlackBoxes:
    """Peers with faults on one checkpoint, and their diagnoses. Runs with one fault are shared by all of them."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.cases = {case.name: case for case in case_list.build(target.config)}
        self._oracles = Oracles(target, LANE, self.cases, self._shown(0, (), costly=tuple(self.cases)))

    def pairs(self, count: int, seed: int = SEED) -> list[tuple[Fault, Fault]]:
        """Pairs of faults of different defects, drawn by the seed; more than are needed: some do not count."""
        faults = [fault for fault in candidates(LANE) if not fault.beside]
        drawn = np.random.default_rng(seed).integers(len(faults), size=(4 * count, 2))
        return [(faults[i], faults[j]) for i, j in drawn if faults[i].id != faults[j].id]

    def told(self, number: int, *faults: Fault) -> Told | None:
        """The diagnosis of a peer with these faults; None for a pair of which one hides the other.

        Args:
            number: chooses the peer's order of summation.
        """
        began, keys = time.perf_counter(), tuple(fault.key for fault in faults)
        costly = [fault.case for fault in faults] if len(faults) == 1 else []
        search = self._search(self._shown(number, faults, costly))
        if not any(shown.deviates for shown in search.shown.values()):
            return Told(keys, HIDDEN) if len(faults) == 1 else None
        if len(faults) > 1 and any(search.whole((fault,)) for fault in faults):
            return None
        found = search.found()
        sets = tuple(dict.fromkeys(ids_of(one) for one in found))
        return Told(keys, self._word(faults, found, sets), sets, time.perf_counter() - began)

    def _word(self, faults: Sequence[Fault], found: Sequence[Hypothesis], sets: Sequence[tuple[str, ...]]) -> str:
        if any(not fault.named for fault in faults):
            return WRONG if sets else UNKNOWABLE
        if ids_of(faults) in sets:
            return NAMED if len(sets) == 1 else AMONG
        if not sets:
            return MISSED
        true, cases = tuple(faults), self.cases.values()
        return WRONG if any(differ(self.target, LANE, case, true, found[0]) for case in cases) else SAME

    def _shown(self, number: int, faults: Sequence[Fault], costly: Sequence[str] = ()) -> dict[str, Evidence]:
        """What the peer shows in every case that is cheap, and in these costly ones."""
        orders = [name for name in LEGAL if name != "blocks" or not any(_of_tiles(fault) for fault in faults)]
        profile, order = LEGAL[orders[number % len(orders)]]
        peer = FaultyPeer(joined(order, *(fault.inject for fault in faults)), profile=profile)
        peer.taps = (LOGITS,)
        peer.open(self.target)
        asked = [case for case in self.cases.values() if not case.costly or case.name in costly]
        return {case.name: shown for case in asked if (shown := self._seen(peer, case)) is not None}

    def _seen(self, peer: FaultyPeer, case: Case) -> Evidence | None:
        with Dump() as dump:
            try:
                peer.run(case, dump)
            except Exception:  # a fault need not fit a case
                return None
            return evidence(self.target, case, dump)

    def _search(self, shown: dict[str, Evidence]) -> Search:
        """The search over it: what deviates first, by what the oracle without faults says."""
        marked = [replace(e, deviates=not fit(self._oracles, e, ()).near) for e in shown.values()]
        size = {e.case: sum(v.shape[0] for v in e.values.values() if v.ndim) for e in marked}
        cheap = any(e.deviates and not self.cases[e.case].costly for e in marked)
        kept = [e for e in marked if not self.cases[e.case].costly or (e.deviates and not cheap)]
        ordered = {e.case: e for e in sorted(kept, key=lambda e: (not e.deviates, size[e.case], e.case))}
        costly = {name: case.exposes for name, case in self.cases.items() if case.costly}
        return Search(self._oracles, ordered, candidates(LANE), costly)
