"""The command `run`: judges peers on checkpoints and cases, and reports what was found.

An interruption loses nothing: what was judged until then is shown and written. The verdict is then INCOMPLETE, unless
a peer deviates.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from conformance.checkpoints import BUNDLED, resolve
from conformance.commands.diagnose import diagnoses
from conformance.commands.options import check_cases
from conformance.commands.request import Request, of_run
from conformance.judge.comparisons import Comparison, Found
from conformance.judge.judgement import Judgement
from conformance.judge.session import Session
from conformance.judge.sitting import Beside
from conformance.peers.find import create, other_type
from conformance.peers.protocol import Peer, optional
from conformance.progress import Reporter, reporting
from conformance.report import files
from conformance.report import text as report
from conformance.report.conclusion import concluded
from conformance.report.result import Result
from conformance.report.terms import Work, work
from conformance.sweep.workers import Answer, Question, judged
from conformance.target import Target
from conformance.terminal import console

WORTH = 40  # comparisons, from which on processes pay


def run(options: argparse.Namespace) -> int:
    """Judge as the options say; returns the verdict's exit status."""
    return judge_peers(of_run(options))


def judge_peers(request: Request) -> int:
    """Judge the peers on their checkpoints and cases, and report; returns the verdict's exit status."""
    return reported(result_of(request), request)


def result_of(request: Request) -> Result:
    """Judge the peers on their checkpoints and cases; an interruption is part of the result."""
    began, interrupted = time.perf_counter(), False
    with reporting(quiet=not request.progress) as reporter:
        asked = _asked(request, reporter)
        so_far = SoFar()
        try:
            _judged(request, asked, so_far, reporter)
        except KeyboardInterrupt:
            interrupted = True
    result = concluded(asked, so_far.found, so_far.beside, request.known, request.command)
    with reporting(quiet=not request.progress) as reporter:
        told = [] if interrupted else diagnoses(list(asked.targets), result.judgements, reporter.say, request.build)
    return replace(
        result,
        diagnoses=told,
        seconds=time.perf_counter() - began,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + sum(so_far.peak.values()),
        interrupted=f"{len(so_far.ended)} of {len(asked.every)} comparisons" if interrupted else "",
    )


@dataclass
class SoFar:
    """What was found until now.

    Args:
        ended: the comparisons that have ended.
        peak: process → the most memory that it had, in bytes.
    """

    found: Found = field(default_factory=list)
    beside: Beside = field(default_factory=Beside)
    ended: list[Comparison] = field(default_factory=list)
    peak: dict[int, int] = field(default_factory=dict)

    def add(self, one: Comparison, judgements: Sequence[Judgement], beside: Beside) -> None:
        self.found += [(one.target, judgement) for judgement in judgements]
        self.ended.append(one)
        self.beside.add(beside)


def _judged(request: Request, asked: Work, so_far: SoFar, reporter: Reporter) -> None:
    """Judge in this process, or in as many as were asked for."""
    wanted = asked.every
    processes = _processes(request, len(wanted))
    if processes == 1:
        _judged_here(request, asked, so_far, reporter)
        return
    targets = tuple(target.name for target in asked.judged_on)
    question = Question(asked.terms, request.names, targets, request.backend.name, request.timeout)
    reporter.start(len(wanted))

    def ended(one: Comparison | None, answer: Answer) -> None:
        so_far.peak[answer.process] = answer.peak
        if one is None:
            so_far.beside.add(answer.beside)
            return
        so_far.add(one, answer.judgements, answer.beside)
        reporter.say(f"{one.case}: {one.peer}")
        reporter.step()

    judged(question, wanted, processes, ended)


def _judged_here(request: Request, asked: Work, so_far: SoFar, reporter: Reporter) -> None:
    session = Session(
        asked.judged_on,
        asked.judged,
        reporter,
        exact=request.exact,
        asked=request.asked,
        generating=request.generating,
        repeat=request.repeat,
        required=request.required,
        others=_others(request),
        ended=so_far.add,
    )
    try:
        session.judge(list(request.peers))
    finally:
        so_far.beside.add(session.beside)


def _others(request: Request) -> dict[str, Peer]:
    """A peer's name → the same in another type, where both were asked for."""
    given = request.names.values()
    others = {name: other_type(spec, given) for name, spec in request.names.items()}
    return {name: create(other, request.backend) for name, other in others.items() if other}


def _processes(request: Request, comparisons: int) -> int:
    """As many as were asked for. Unasked, one a core where models are small, and the work is worth their start."""
    usual = request.ckpt in BUNDLED and not request.synthetic and comparisons >= WORTH
    usual = usual and all(name.startswith("transformers") for name in request.names.values())
    most = request.jobs or ((os.cpu_count() or 1) if usual else 1)
    many = request.backend.name == "numpy" and len(request.names) == len(request.peers)
    return min(most, comparisons) if many else 1


def _asked(request: Request, reporter: Reporter) -> Work:
    """What there is to judge. Raises UsageError for cases or known deviations that no checkpoint has."""
    made = work(request.terms(), _targets(request, reporter), request.cases_of)
    check_cases(request.cases, (case.name for _, case in made.built))
    if request.required is not None:
        request.required.check(case.name for _, case in made.plan)
    return made


def _targets(request: Request, reporter: Reporter) -> list[Target]:
    """The checkpoints that every peer accepts; if there is none, all of them."""
    made = {"synthetic": request.synthetic, "calm": request.calm}
    targets = resolve(request.ckpt, **made, progress=reporter.tensors, backend=request.backend)
    targets = [t for t in targets if all(optional(p, "accepts")(t) for p in request.peers)] or targets
    targets = targets[:1] if request.first else targets
    request.known.check(targets)
    return targets


def reported(result: Result, request: Request) -> int:
    """Show and write a result; returns the verdict's exit status."""
    try:
        report.show(result, console(), detail=request.detail)
        print(result.last_line(), flush=True)
    except (OSError, KeyboardInterrupt):  # a reader who has gone must not cost the files
        files.write(result, request.outputs)
        raise
    files.write(result, request.outputs)  # after the verdict, which a full disk must not cost
    return result.status
