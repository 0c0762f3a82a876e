"""The command `run`: judges peers on checkpoints and cases, and reports what was found.

An interruption loses nothing: what was judged until then is shown and written. The verdict is then INCOMPLETE, unless
a peer deviates.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conformance.arrays import has_device
from conformance.checkpoints import BUNDLED, resolve
from conformance.commands.diagnose import diagnoses
from conformance.commands.options import check_cases
from conformance.commands.request import Request, of_run
from conformance.errors import PeerBroken, UsageError
from conformance.judge.comparisons import Comparison
from conformance.judge.session import Session
from conformance.peers.find import alone, create, other_type
from conformance.peers.guard import PACKAGE, warnings_kept
from conformance.peers.later import itself
from conformance.peers.protocol import Peer, optional
from conformance.progress import Reporter, reporting
from conformance.report import files
from conformance.report import text as report
from conformance.report.conclusion import concluded
from conformance.report.result import Result
from conformance.report.terms import Work, work
from conformance.sweep import heap
from conformance.sweep.card import left_beside, side_by_side
from conformance.sweep.client import reach
from conformance.sweep.engine import Engine
from conformance.sweep.forecast import Forecast, forecast
from conformance.sweep.header import header_of, marked
from conformance.sweep.keeping import Keeping
from conformance.sweep.kept import Ended, write
from conformance.sweep.lent import lending
from conformance.sweep.share import WHOLE, Share, cost, part
from conformance.sweep.so_far import SoFar
from conformance.sweep.workers import Answer, Question, judged
from conformance.target import Target
from conformance.terminal import console
from t5g2ref.dtypes import DTYPES, HALF

WORTH = 40  # comparisons, from which on processes pay


def run(options: argparse.Namespace) -> int:
    """Judge as the options say; returns the verdict's exit status."""
    return judge_peers(of_run(options), own_process=True)


def judge_peers(request: Request, *, own_process: bool = False) -> int:
    """Judge the peers on their checkpoints and cases, and report; returns the verdict's exit status.

    `own_process`: this process is there for nothing else, and may be set up for it.
    """
    made = _began(request)
    if own_process and not any(target.streamed or has_device(target.backend) for target in made.work.targets):
        heap.keep()
    with made.so_far:
        _make(request, made)
        result = _result(request, made)
        if request.share is None:
            return reported(result, request.outputs, detail=request.detail)
        status = reported(result, {}, detail=request.detail)
        if not made.interrupted:
            _write_share(request.outputs["json"], request.share, made, result)
        return status


def _write_share(path: Path, share: Share, made: _Made, result: Result) -> None:
    """The file that `merge` reads."""
    records = made.so_far.records
    ended = Ended(len(records), result.seconds, result.peak_bytes, made.so_far.beside)
    write(path, header_of(made.work, share), records, ended)


def result_of(request: Request) -> Result:
    """Judge the peers on their checkpoints and cases; an interruption is part of the result."""
    made = _began(request)
    with made.so_far:
        _make(request, made)
        return _result(request, made)


@dataclass
class _Made:
    """What became of a request: what there is to judge, what was found until now, and how long that took."""

    work: Work
    so_far: SoFar
    began: float
    forecast: Forecast | None = None
    interrupted: bool = False

    @property
    def peak_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + sum(self.so_far.peak.values())


def _began(request: Request) -> _Made:
    """What there is to judge, and what is kept of it from an earlier time."""
    began = time.perf_counter()
    if request.cluster:
        reach(request.cluster)  # before weights are read, which may take minutes
    with reporting(quiet=not request.progress) as reporter:
        asked = _asked(request, reporter)
    wanted = asked.every if request.share is None else part(asked, request.share)
    keeping = Keeping(request.resume, header_of(asked, request.share or WHOLE), asked) if request.resume else None
    so_far = SoFar(wanted, keeping, request.cluster)
    predicted = None if request.cluster else forecast(asked, so_far.left)
    if predicted is not None:
        print(f"conformance: weights are streamed; predicted: {predicted}", file=sys.stderr, flush=True)
    return _Made(asked, so_far, began, predicted)


def _make(request: Request, made: _Made) -> None:
    """Make the comparisons that are left, until somebody interrupts it."""
    with reporting(quiet=not request.progress) as reporter:
        try:
            _judged(request, made.work, made.so_far, reporter)
        except KeyboardInterrupt:
            made.interrupted = True


def _result(request: Request, made: _Made) -> Result:
    asked, so_far = made.work, made.so_far
    if made.forecast is not None and not made.interrupted:
        so_far.beside.note(made.forecast.beside(time.perf_counter() - made.began, made.peak_bytes))
    result = concluded(asked, so_far.found, so_far.beside, request.known, request.command)
    whole, ended = not made.interrupted and request.share is None, f"{len(so_far.records)} of {len(asked.every)}"
    with reporting(quiet=not request.progress) as reporter:
        told = diagnoses(list(asked.targets), result.judgements, reporter.say, request.build) if whole else []
    return replace(
        result,
        diagnoses=told,
        seconds=time.perf_counter() - made.began,
        peak_bytes=made.peak_bytes,
        interrupted=f"{ended} comparisons" if made.interrupted else "",
        share=f"shard {request.share}: {ended} comparisons" if request.share else "",
    )


def _judged(request: Request, asked: Work, so_far: SoFar, reporter: Reporter) -> None:
    """Judge what is left, in this process or in as many as were asked for."""
    if not (left := so_far.left):
        return
    engine = _engine(request, len(asked.every))  # of a share too: a product's bits follow from its threads
    if engine.here(asked.every):
        _judged_here(request, asked, so_far, reporter)
        return
    targets = tuple(target.name for target in asked.targets)
    marks = {target.name: marked(target) for target in asked.targets} if engine.cluster else {}
    stream = any(target.streamed for target in asked.targets) or request.stream
    question = Question(asked.terms, request.names, targets, request.backend.name, request.timeout, marks, stream)
    reporter.start(len(left))

    def ended(one: Comparison | None, answer: Answer) -> None:
        so_far.peak[answer.process] = answer.peak
        if one is None:
            so_far.beside.add(answer.beside)
            return
        so_far.add(one, answer.judgements, answer.beside, lost=answer.lost)
        reporter.say(f"{one.case}: {one.peer}")
        reporter.step()

    # So that nobody is left alone with the last; peers take turns at a case.
    longest_first = sorted(left, key=lambda one: (-cost(asked, one), one.target, one.case))
    if engine.cluster:
        judged(question, asked, longest_first, engine, ended)
        return
    types = {question.types[one.peer] for one in left}
    with lending(asked.targets, [dtype for dtype in DTYPES if dtype in HALF and dtype in types]) as loan:
        so_far.beside.note(*filter(None, [loan.why]))
        question, space = replace(question, lent=loan.lent), None
        if has_device(request.backend):
            space = left_beside(asked.targets, min(engine.processes or 1, len(left)), types if loan.lent else ())
        with side_by_side(request.backend) as slow:
            so_far.beside.note(*filter(None, [slow]))
            judged(question, asked, longest_first, engine, ended, space)


def _judged_here(request: Request, asked: Work, so_far: SoFar, reporter: Reporter) -> None:
    with warnings_kept(PACKAGE, said := list[str]()):  # a peer that was only described is imported now
        lone = len(request.peers) == 1 or (bool(request.names) and alone(request.names.values()))
        peers, others = [itself(peer, lone=lone) for peer in request.peers], _others(request)
    so_far.beside.note(*(note for note in said if note not in request.notes))
    session = Session(
        asked.judged_on,
        asked.judged,
        reporter,
        exact=request.exact,
        asked=request.asked,
        generating=request.generating,
        repeat=request.repeat,
        required=request.required,
        others=others,
        only=frozenset(so_far.left),
        ended=so_far.add,
    )
    try:
        session.judge(peers)
    finally:
        so_far.beside.add(session.beside)


def _others(request: Request) -> dict[str, Peer]:
    """A peer's name → the same in another type, where both were asked for."""
    given = request.names.values()
    others = {name: other_type(spec, given) for name, spec in request.names.items()}
    made = dict[str, Peer]()
    for name, other in others.items():
        with suppress(PeerBroken):  # which is said in its own turn
            made |= {name: create(other, request.backend)} if other else {}
    return made


def _engine(request: Request, comparisons: int) -> Engine:
    """Where comparisons are made: on the cluster that was asked for, or in as many processes as were. Unasked, one a
    core where models are small, and the work is worth their start."""
    named = len(request.names) == len(request.peers)
    if request.cluster:
        if not named:
            raise UsageError(f"--cluster {request.cluster}: another machine needs a name for each peer")
        return Engine(request.jobs, request.cluster)
    usual = request.ckpt in BUNDLED and not request.synthetic and not request.stream and comparisons >= WORTH
    usual = usual and all(name.startswith("transformers") for name in request.names.values())
    usual = usual and not has_device(request.backend)
    most = request.jobs or ((os.cpu_count() or 1) if usual else 1)
    return Engine(min(most, comparisons) if named else 1)


def _asked(request: Request, reporter: Reporter) -> Work:
    """What there is to judge. Raises UsageError for cases or known deviations that no checkpoint has."""
    made = work(request.terms(), _targets(request, reporter), request.cases_of)
    check_cases(request.cases, (case.name for _, case in made.built))
    if request.required is not None:
        request.required.check(case.name for _, case in made.plan)
    return made


def _targets(request: Request, reporter: Reporter) -> list[Target]:
    """The checkpoints that every peer accepts; if there is none, all of them."""
    made: dict[str, Any] = {"synthetic": request.synthetic, "calm": request.calm, "stream": request.stream}
    made["layers"] = request.layers
    targets = resolve(request.ckpt, **made, progress=reporter.tensors, backend=request.backend)
    targets = [t for t in targets if all(optional(p, "accepts")(t) for p in request.peers)] or targets
    targets = targets[:1] if request.first else targets
    request.known.check(targets)
    return targets


def reported(result: Result, outputs: Mapping[str, Path], *, detail: bool) -> int:
    """Show and write a result; returns the verdict's exit status."""
    try:
        report.show(result, console(), detail=detail)
        print(result.last_line(), flush=True)
    except (OSError, KeyboardInterrupt):  # a reader who has gone must not cost the files
        files.write(result, outputs)
        raise
    files.write(result, outputs)  # after the verdict, which a full disk must not cost
    return result.status
