"""Runs the jobs of a self-test, each a fault or a legal run, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from threadpoolctl import threadpool_limits

from conformance.cases import catalogue as case_list
from conformance.checkpoints import BUNDLED, resolve
from conformance.defects import all as catalogue
from conformance.judge.judge import judge
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.legal import LEGAL
from conformance.selftest.trial import Bench
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import find
from t5g2ref.dtypes import DType

FEW_CASES = ("short", "padded-left-cached", "image")  # of legal runs in half types: they have each kind of tap


Job = tuple[str, ...]


def _results(given: tuple[Any, ...], jobs: list[Job], processes: int) -> Iterator[tuple[Job, Any]]:
    """(job, result) as they come; one process is this one."""
    if processes == 1:
        bench = _bench(*given)
        yield from ((job, _do(bench, job)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    with (
        tempfile.TemporaryDirectory(prefix="conformance-selftest-") as folder,
        ProcessPoolExecutor(processes, context, _start, (folder, *given)) as pool,
    ):
        with _deaf():
            waiting: dict[Future[Any], Job] = {pool.submit(_there, job): job for job in jobs}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started in the block never hear Ctrl-C, which the terminal sends to all: their parent ends
    them. It hears its own after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_BENCH: list[Bench] = []  # of a worker process


def _start(folder: str, *given: Any) -> None:
    tempfile.tempdir = folder  # deleted by the parent, also when this process is ended
    threadpool_limits(1)
    _BENCH[:] = [_bench(*given)]


def _there(job: Job) -> Any:
    return _do(_BENCH[0], job)


def _bench(ckpt: str, synthetic: bool, calm: bool, backend: str) -> Bench:
    targets = resolve(ckpt, synthetic=synthetic, calm=calm, backend=find(backend))
    if ckpt in BUNDLED and not synthetic:
        massive = resolve(str(bundled("tiny")), synthetic=True, backend=find(backend))[0]
        targets.append(replace(massive, name="massive"))
    return Bench({target.name: target for target in targets})


def _do(bench: Bench, job: Job) -> Any:
    if job[0] == "fault":
        (fault,) = (f for f in (*catalogue.FAULTS, *catalogue.NEAR) if f.key == job[1])
        return bench.try_out(fault, everywhere=job[2] == "all")
    return _conforming(bench.targets[job[3]], job[1], cast(DType, job[2]))


def _conforming(target: Target, name: str, lane: DType) -> list[tuple[str, str, str, str, str]]:
    """A legal run of every case, with what it was blamed for; "" for nothing."""
    profile, injection = LEGAL[name]
    peer = FaultyPeer(injection, target.backend, lane, profile)
    peer.open(target)
    found: list[tuple[str, str, str, str, str]] = []
    for case in case_list.build(target.config):
        if (lane == "float32" and target.name == "tiny") or case.name in FEW_CASES:
            result = judge(cast(Any, peer), target, case)
            blame = "" if result.culprit is None else f"{result.culprit.tap} {result.culprit.status}"
            found.append((name, lane, target.name, case.name, blame or result.error))
    return found
