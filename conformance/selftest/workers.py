"""Runs the jobs of a self-test, each a fault or a legal run, in this process or in several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from conformance.cases import catalogue as case_list
from conformance.cases import generating, pictured
from conformance.cases.case import Case
from conformance.checkpoints import BUNDLED, resolve
from conformance.defects import all as catalogue
from conformance.defects.injection import HEALTHY
from conformance.exchange.plain import PlainError, decoded
from conformance.judge.generated import judge_generated
from conformance.judge.judge import judge
from conformance.judge.pictured import judge_pictures
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.legal import LEGAL
from conformance.selftest.preparing_peer import PreparingPeer
from conformance.selftest.speaking_peer import SpeakingPeer
from conformance.selftest.trial import Bench, Trial, Where
from conformance.sweep.alike import refuse_other_weights
from conformance.sweep.engine import Engine
from conformance.sweep.header import marked
from conformance.sweep.task import Task
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import find
from t5g2ref.dtypes import DType
from t5g2ref.numerics import Profile

FEW_CASES = ("short", "padded-left-cached", "image")  # of legal runs in half types: they have each kind of tap
Job = tuple[str, ...]


@dataclass(frozen=True)
class Given:
    """Of all jobs: the checkpoint, see `checkpoints.resolve`, and where it is computed."""

    ckpt: str
    synthetic: bool
    calm: bool
    backend: str


def results(given: Given, jobs: list[Job], engine: Engine) -> Iterator[tuple[Job, Any]]:
    """(job, result) as they come."""
    if engine.here(jobs):
        bench = _bench(given)
        yield from ((job, _do(bench, job)) for job in jobs)
        return
    bundled = given.ckpt in BUNDLED and not given.synthetic  # files of the package, whose source is compared
    marks = {target.name: marked(target) for target in _targets(given)} if engine.cluster and not bundled else {}
    yield from engine.done(Task(_bench, (given, marks), _do, checked=_checked), jobs)


def _targets(given: Given) -> list[Target]:
    return resolve(given.ckpt, synthetic=given.synthetic, calm=given.calm, backend=find(given.backend))


def _bench(given: Given, marks: Mapping[str, str] | None = None) -> Bench:
    targets = _targets(given)
    if marks:
        refuse_other_weights(targets, marks)
    if given.ckpt in BUNDLED and not given.synthetic:
        massive = resolve(str(bundled("tiny")), synthetic=True, backend=find(given.backend))[0]
        targets.append(replace(massive, name="massive"))
    return Bench({target.name: target for target in targets})


def _checked(job: Job, raw: Any) -> Any:
    """What a job's result is, once it came from another machine."""
    found = decoded(Trial if job[0] == "fault" else list[tuple[str, str, str, str, str]], raw, " ".join(job))
    if job[0] == "fault" and found.key != job[1]:
        raise PlainError(f"is of {found.key}, expected {job[1]}")
    return found


def _do(bench: Bench, job: Job) -> Any:
    if job[0] == "fault":
        (fault,) = (f for f in (*catalogue.FAULTS, *catalogue.NEAR) if f.key == job[1])
        return bench.try_out(fault, cast(Where, job[2]))
    return _conforming(bench.targets[job[3]], job[1], cast(DType, job[2]))


def _conforming(target: Target, name: str, lane: DType) -> list[tuple[str, str, str, str, str]]:
    """A legal run of every case, with what it was blamed for; "" for nothing."""
    profile, injection = LEGAL[name]
    peer = FaultyPeer(injection, target.backend, lane, profile)
    peer.open(target)
    found: list[tuple[str, str, str, str, str]] = []
    for case in case_list.build(target.config):
        every = case.asks(lane) and (target.name == "tiny" if case.costly or lane == "float32" else False)
        if every or case.name in FEW_CASES:
            result = judge(cast(Any, peer), target, case, repeat=False)
            blame = "" if result.culprit is None else f"{result.culprit.tap} {result.culprit.status}"
            found.append((name, lane, target.name, case.name, blame or result.error))
    if lane == generating.TYPE and injection is HEALTHY:
        found += _generated(target, name, profile)
        found += [_prepared(target, name, case) for case in pictured.build(target.config)]
    return found


def _prepared(target: Target, name: str, case: Case) -> tuple[str, str, str, str, str]:
    """The same of a healthy processor."""
    peer = PreparingPeer()
    peer.open(target)
    result = judge_pictures(cast(Any, peer), target, case, repeat=False)
    blame = "" if result.culprit is None else f"{result.culprit.tap} {result.culprit.status}"
    return name, generating.TYPE, target.name, case.name, blame or result.error or result.skipped


def _generated(target: Target, name: str, profile: Profile) -> list[tuple[str, str, str, str, str]]:
    """The same of a legal run's own generation, in each case that takes no while."""
    peer = SpeakingPeer(backend=target.backend, profile=profile)
    peer.open(target)
    found = []
    for case in (c for c in generating.build(target.config) if not c.costly):
        result = judge_generated(cast(Any, peer), target, case, repeat=False)
        blame = "" if result.culprit is None else f"{result.culprit.tap} {result.culprit.status}"
        found.append((name, generating.TYPE, target.name, case.name, blame or result.error))
    return found
