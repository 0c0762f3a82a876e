"""The diagnosis of a black box that deviates: which catalogued defects it computes the model with, in sentences."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from conformance.cases.case import Case
from conformance.cases.least import least
from conformance.defects.catalogue import DEFECTS
from conformance.judge.evidence import Evidence
from conformance.judge.hypotheses.fit import fit
from conformance.judge.hypotheses.oracles import Hypothesis, Oracles, candidates, ids_of
from conformance.judge.hypotheses.search import MOST_TRIED, Search
from conformance.measure.words import in_words
from conformance.target import Target
from t5g2ref.dtypes import DType

LONGEST = 900.0  # seconds that a search may take, by the time of one run; beyond it none is begun
ALTERNATIVES = 4  # that a sentence names


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong in a peer, as far as hypotheses tell.

    Args:
        found: sets of defects, each of which explains every case; these inputs do not tell them apart.
        worst: the worst ratio with the first set in the oracle; `without`: the peer's own.
        left_out: defect of the first set → the worst ratio when it is left out.
        variants: defect → how it was put in, where one way of it fits and others do not.
        apart: the case of the catalogue that would tell the sets apart; "" where there is one set, or no such case.
        cases: in which the peer was held against hypotheses.
        why: nothing was tried, and why; "" else.
    """

    peer: str
    target: str
    found: tuple[tuple[str, ...], ...] = ()
    worst: float = float("nan")
    without: float = float("nan")
    left_out: Mapping[str, float] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    apart: str = ""
    cases: tuple[str, ...] = ()
    seconds: float = 0.0
    why: str = ""

    def sentences(self) -> list[str]:
        """The diagnosis in words, each sentence by itself."""
        if self.why:
            return [f"no diagnosis: {self.why}"]
        if not self.found:
            tried = (
                f"no defect of the catalogue explains all of {len(self.cases)} cases, and no set of them that was tried"
            )
            return [f"{tried}: something else may be wrong"]
        words = [
            f"this engine computes T5Gemma 2 with {self._sets()}: then its worst ratio is {in_words(self.worst, 2)}, "
            f"without {in_words(self.without, 2)}"
        ]
        if len(self.found[0]) > 1:
            parts = (f"{in_words(ratio, 2)} without {defect}" for defect, ratio in self.left_out.items())
            words.append(f"each is needed: {', '.join(parts)}")
        if len(self.found) > 1:
            tell = f"case {self.apart} would" if self.apart else "no case of the catalogue does"
            words.append(f"these inputs do not tell them apart; {tell}")
        return words

    def _sets(self) -> str:
        """What fits: the sets of defects, of which one is there."""
        sets = [" and with ".join(map(self._named, ids)) for ids in self.found[: 1 + ALTERNATIVES]]
        more = len(self.found) - len(sets)
        return ", or else with ".join(sets) + (f", or {more} others" if more else "")

    def _named(self, defect: str) -> str:
        variant = self.variants.get(defect, "")
        return f"{defect} {DEFECTS.get(defect, '')}" + (f" ({variant})" if variant else "")


def diagnosed(
    peer: str,
    target: Target,
    dtype: DType,
    cases: Sequence[Case],
    shown: Sequence[Evidence],
    lacks: Sequence[str] = (),
) -> Diagnosis:
    """Look for the defects of a peer that deviates.

    Args:
        cases: every case of the checkpoint; those without evidence may tell hypotheses apart.
        shown: what the peer showed, by case.
        lacks: names of cases that the peer cannot be asked for.
    """
    began, known = time.perf_counter(), {case.name: case.given(dtype) for case in cases}
    given = _ordered([e for e in shown if e.values], known)
    oracles = Oracles(target, dtype, known, given)
    empty = Diagnosis(peer, target.name, cases=tuple(given))
    if not any(e.deviates for e in given.values()):
        return replace(empty, why="where it deviates it shows nothing that can be compared")
    faults = candidates(dtype)
    if (seconds := _seconds(oracles, next(iter(given))) * MOST_TRIED) > LONGEST:
        return replace(empty, why=f"to try hypotheses here may take {seconds / 60:.0f} minutes: give --ckpt tiny")
    search = Search(oracles, given, faults, {n: known[n].exposes for n in given if known[n].costly})
    found = search.found()
    if found:
        others = [case for case in cases if case.name not in given and case.name not in lacks and case.asks(dtype)]
        empty = _told(empty, search, found, _apart(target, dtype, found, others))
    return replace(empty, seconds=time.perf_counter() - began)


def _ordered(shown: Sequence[Evidence], cases: Mapping[str, Case]) -> dict[str, Evidence]:
    """By case: those that deviate first, the small before the large; costly ones only where no other deviates."""
    cheap = [e for e in shown if not cases[e.case].costly]
    kept = cheap if any(e.deviates for e in cheap) else [*cheap, *(e for e in shown if e not in cheap and e.deviates)]
    size = {e.case: sum(run.input_ids.size + run.decoder_input_ids.size for run in cases[e.case].runs) for e in kept}
    return {e.case: e for e in sorted(kept, key=lambda e: (not e.deviates, size[e.case]))}


def _seconds(oracles: Oracles, case: str) -> float:
    """How long one run of the oracle takes; the first one prepares what all need, and is not timed."""
    oracles.truth(case)
    began = time.perf_counter()
    oracles.control(case)
    return time.perf_counter() - began


def _told(empty: Diagnosis, search: Search, found: Sequence[Hypothesis], apart: str) -> Diagnosis:
    """The diagnosis of what was found: the nearest first, its figures, and what fits as well."""
    ranked = sorted(found, key=lambda faults: (search.worst(faults), ids_of(faults)))
    sets = tuple(dict.fromkeys(ids_of(faults) for faults in ranked))
    first = [faults for faults in ranked if ids_of(faults) == sets[0]]
    variants = {f.id: f.variant for f in first[0] if f.variant and all(f in faults for faults in first)}
    left = {f.id: search.worst(tuple(g for g in first[0] if g is not f)) for f in first[0]}
    return replace(
        empty,
        found=sets,
        worst=search.worst(first[0]),
        without=search.worst(()),
        left_out=left if len(left) > 1 else {},
        variants=variants,
        apart=apart,
    )


def _apart(target: Target, dtype: DType, found: Sequence[Hypothesis], others: Sequence[Case]) -> str:
    """The first case in which two hypotheses of other defects differ; "" where none does, or all are of one."""
    each = {ids_of(faults): faults for faults in reversed(found)}
    for case in sorted(others, key=lambda case: case.costly):
        for one, other in combinations(list(each.values())[: 1 + ALTERNATIVES], 2):
            if differ(target, dtype, case.given(dtype), one, other):
                return case.name
    return ""


def differ(target: Target, dtype: DType, case: Case, one: Hypothesis, other: Hypothesis) -> bool:
    """Whether a peer with the one would be told from a peer with the other in this case."""
    places = [(call, name) for call, name in enumerate(least(target.config, case)) if name]
    asked = {case.name: Evidence(case.name, dict.fromkeys(places, np.zeros(0)), {})}
    oracles = Oracles(target, dtype, {case.name: case}, asked)
    shown = oracles.control(case.name, one)
    return shown is not None and not fit(oracles, Evidence(case.name, shown, {}), other).near
