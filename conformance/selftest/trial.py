"""Puts one fault before the judge: in its own case for the whole judgement, in others until something fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from conformance.activations import Dump
from conformance.cases import catalogue as case_list
from conformance.cases import generating, pictured
from conformance.cases.case import Case
from conformance.cases.plan import plan_of, valid_tokens
from conformance.defects.injection import Fault
from conformance.judge.generated import judge_generated, unlike
from conformance.judge.hypotheses.diagnosis import diagnosed
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.judge.lanes import SingleLane
from conformance.judge.meeting import Ended, Meeting, Place
from conformance.judge.operations import Operations
from conformance.judge.pictured import judge_pictures, written
from conformance.judge.walk import Walk
from conformance.measure.distance import distances
from conformance.measure.finding import Finding
from conformance.oracle.run_case import models
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.preparing_peer import PreparingPeer
from conformance.selftest.speaking_peer import SpeakingPeer
from conformance.target import Target
from t5g2ref.dtypes import DType
from t5g2ref.model import T5Gemma2

EXPECTED, ELSEWHERE, SURVIVED, NOTHING = "K", "k", "!", "."
STRONGER = (EXPECTED, ELSEWHERE, SURVIVED, NOTHING)

Host = np.ndarray[Any, Any]
Where = Literal["own", "declared", "all"]
"""The cases in which a fault is tried: its own, those that declare its id beside it, or all."""

Values = dict[tuple[int, str], Host]


@dataclass
class Trial:
    """What the judge made of one fault.

    Args:
        key: the fault's.
        cells: case → one of STRONGER; only the cases that were run.
        culprit: that of its own case, as (tap, status, call).
        ratio: what the culprit was judged by.
        named: ids of the defects that the judge named.
        failing: every failing local tap as (tap, call, status, judged).
        error: the peer's, where it raised.
        injected: whether the fault changes anything that the peer shows in the fault's own case.
    """

    key: str
    cells: dict[str, str] = field(default_factory=dict)
    culprit: tuple[str, str, int] | None = None
    ratio: float = float("nan")
    named: list[str] = field(default_factory=list)
    failing: list[tuple[str, int, str, float]] = field(default_factory=list)
    error: str = ""
    injected: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """The targets, and what healthy peers show on them.

    Args:
        targets: name → target. `fault.target` picks one, or the first where that name is not there.
    """

    def __init__(self, targets: dict[str, Target]) -> None:
        self.targets = targets
        self._healthy: dict[tuple[str, str, str], Values] = {}

    def target(self, fault: Fault, name: str = "") -> Target:
        """The target that a fault is tried on, with the config that the fault gives to truth and peer alike."""
        chosen = self.targets.get(name or fault.target, next(iter(self.targets.values())))
        config = fault.given(chosen.config)
        return chosen if config == chosen.config else replace(chosen, config=config)

    def cases(self, fault: Fault, name: str = "") -> list[Case]:
        """Every case of the target that the fault is tried on."""
        config = self.target(fault, name).config
        return [*case_list.build(config), *generating.build(config), *pictured.build(config)]

    def try_out(self, fault: Fault, where: Where) -> Trial:
        """Try the fault in its own case and, as `where` says, in others: in half types only if they declare it."""
        trial, target = Trial(fault.key), self.target(fault)
        for case in self.cases(fault):
            if case.name == fault.case:
                trial = self._own(trial, fault, target, case)
            elif where != "own" and (
                fault.id in case.exposes or (where == "all" and fault.lane == "float32" and not case.costly)
            ):
                trial.cells[case.name] = self._cell(fault, target, case)
                if trial.cells[case.name] not in (EXPECTED, ELSEWHERE) and fault.id in case.exposes:
                    trial.cells[case.name] = self._other_target(fault, case.name, trial.cells[case.name])
        return trial

    def judged(self, fault: Fault, target: Target, case: Case) -> Judgement:
        """The whole judgement of the peer with this fault."""
        if case.pictures:
            preparing = PreparingPeer(fault)
            preparing.open(target)
            return judge_pictures(cast(Any, preparing), target, case, repeat=False)
        if case.prompts:
            speaking = SpeakingPeer(fault, backend=target.backend)
            speaking.open(target)
            return judge_generated(cast(Any, speaking), target, case, repeat=False)
        peer = FaultyPeer(fault.inject, target.backend, cast(DType, fault.lane), later=fault.later)
        peer.open(target)
        return judge(cast(Any, peer), target, case, repeat=fault.later)

    def _diagnosed(self, target: Target, found: Judgement) -> set[str]:
        """What hypotheses name of a peer's own generation, where they leave no choice."""
        if found.made is None or found.evidence is None:
            return set()
        told = diagnosed(found.peer, target, "float32", [found.made], [found.evidence]).found
        return set(told[0]) if len(told) == 1 else set()

    def _own(self, trial: Trial, fault: Fault, target: Target, case: Case) -> Trial:
        result = self.judged(fault, target, case)
        culprit = result.culprit
        trial.injected = self._injected(fault, target, case)
        named = {s.defect for s in result.named if s.named} | self._diagnosed(target, result)
        trial.error, trial.named = result.error, sorted(named)
        trial.failing = [(f.tap, f.call, f.status, f.judged) for f in result.local if not f.passed]
        if culprit is not None:
            trial.culprit, trial.ratio = (culprit.tap, culprit.status, culprit.call), culprit.judged
        trial.cells[case.name] = _letter(fault, culprit if result.deviates else None)
        return trial

    def _injected(self, fault: Fault, target: Target, case: Case) -> bool:
        """Whether the fault changes what the peer shows. One that does not says nothing about the judge."""
        if case.pictures:
            right, wrong = PreparingPeer(), PreparingPeer(fault)
            right.open(target)
            wrong.open(target)
            with written(case) as files:
                return any(not np.array_equal(right.preprocess(f), wrong.preprocess(f)) for _, f in files)
        if case.prompts:
            healthy, peer = (SpeakingPeer(f, backend=target.backend) for f in (None, fault))
            for one in (healthy, peer):
                one.open(target)
            return any(unlike([healthy.generate(p)], [peer.generate(p)]) for p in case.prompts)
        watched = _Watched(fault, target, case, self.healthy(target, case, fault.lane), whole=False)
        with _shown(watched, target, case):
            return watched.unlike is not None

    def _other_target(self, fault: Fault, name: str, found: str) -> str:
        """The stronger of what was found and what the other bundled geometry shows."""
        other = {"tiny": "tiny-even", "tiny-even": "tiny"}.get(fault.target, "")
        if other not in self.targets:
            return found
        target = self.target(fault, other)
        case = next(c for c in self.cases(fault, other) if c.name == name)
        return min(found, self._cell(fault, target, case), key=STRONGER.index)

    def _cell(self, fault: Fault, target: Target, case: Case) -> str:
        if fault.lane != "float32" or case.prompts or case.pictures:
            result = self.judged(fault, target, case)
            if (case.prompts or case.pictures) and not result.deviates and not self._injected(fault, target, case):
                return NOTHING
            return _letter(fault, result.culprit if result.deviates else None)
        healthy = self.healthy(target, case)
        for whole in (False, True):
            watched = _Watched(fault, target, case, healthy, whole)
            with _shown(watched, target, case) as dump:
                if watched.unlike is None:
                    return NOTHING
                ours = models(target.config, target.weights, case, "float32", target.backend)
                plan = plan_of(target.config, case)
                operations = Operations.of(target.config, case, ((call, tap.name) for call, tap in plan))
                lane = _From(watched.unlike, SingleLane("float32", distances(target.backend), operations))
                found = Walk(case, dump, plan, lane, local=True, until_culprit=True).run(ours)
            culprit = next((f for f in found.findings if not f.passed), None)
            if culprit is not None and culprit.status != "missing":
                break  # what came before the first difference is enough, unless that was mere rounding
        return _letter(fault, culprit)

    def healthy(self, target: Target, case: Case, lane: str = "float32") -> Values:
        """What the peer without a fault shows, made once for each target, case and type."""
        key = (target.name, case.name, lane)
        if key not in self._healthy or target not in self.targets.values():
            with _shown(FaultyPeer(backend=target.backend, dtype=cast(DType, lane)), target, case) as dump:
                self._healthy[key] = _values(target, case, dump)
            if target not in self.targets.values():  # with a configuration of its own
                return self._healthy.pop(key)
        return self._healthy[key]


class _From:
    """A lane that judges only from the first tap that differs from the healthy peer's.

    What has the same bits conforms as the healthy peer does, which the legal runs prove.
    """

    def __init__(self, first: tuple[int, str], lane: SingleLane) -> None:
        self._lane, self._first, self._reached = lane, first, first[0] < 0
        self.dtype, self.limit = lane.dtype, lane.limit

    def members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        return self._lane.members(ours)

    def look(self, meeting: Meeting) -> Finding:
        other = (
            meeting.peer is None or meeting.peer.shape != meeting.truth.shape
        )  # also where the tokens that count agree
        self._reached = self._reached or other or meeting.place == self._first
        return self._lane.look(meeting) if self._reached else Finding(meeting.tap.name, meeting.call, "pass")

    def end(self, found: Mapping[Place, Finding]) -> Ended:
        return self._lane.end(found)


class _Enough(Exception):
    """Raised where the peer need not go on."""


class _Watched(FaultyPeer):
    """The peer with the fault, compared with the healthy one's values as it shows its own.

    Attributes:
        unlike: the first tap where a value that counts differs; None where none does.
    """

    def __init__(self, fault: Fault, target: Target, case: Case, healthy: Values, whole: bool) -> None:
        super().__init__(fault.inject, target.backend, cast(DType, fault.lane))
        self._taps = {(call, tap.name): tap for call, tap in plan_of(target.config, case)}
        self._case, self._healthy, self._whole = case, dict(healthy), whole
        self.unlike: tuple[int, str] | None = None

    def run(self, case: Case, dump: Dump) -> None:
        try:
            super().run(case, dump)
        except _Enough:
            return
        except Exception:
            self.unlike = self.unlike or (-1, "it raised")
            raise
        if self._healthy:
            self.unlike = self.unlike or next(iter(self._healthy))

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        value, place = super()._shown(dump, name, value), (dump.calls - 1, name)
        known = self._healthy.pop(place, None)
        if self.unlike is None and not self._like(known, dump.backend.host(dump.get(*place)), place):
            self.unlike = place
        if self.unlike is not None and not self._whole:
            raise _Enough
        return value

    def _like(self, known: Host | None, value: Host, place: tuple[int, str]) -> bool:
        mine = valid_tokens(value, self._taps[place], self._case, place[0]) if place in self._taps else value
        if known is None or mine.dtype != known.dtype or not np.isfinite(value).all():  # NaN is wrong on padding too
            return False
        return np.array_equal(mine, known, equal_nan=mine.dtype != bool)


@contextmanager
def _shown(peer: FaultyPeer, target: Target, case: Case) -> Iterator[Dump]:
    """What the peer shows, up to where it raised if it did."""
    peer.open(target)
    with Dump(target.backend) as dump:
        with suppress(Exception):
            peer.run(case, dump)
        yield dump


def _letter(fault: Fault, culprit: Finding | None) -> str:
    if culprit is None:
        return SURVIVED
    return EXPECTED if fault.at(culprit.tap) else ELSEWHERE


def _values(target: Target, case: Case, dump: Dump) -> Values:
    """Every tap that is shown, on the host; where a batch is padded, only its valid tokens."""
    found = {}
    for call, tap in plan_of(target.config, case):
        value = dump.get(call, tap.name)
        if value is not None:
            found[call, tap.name] = valid_tokens(target.backend.host(value), tap, case, call)
    return found
