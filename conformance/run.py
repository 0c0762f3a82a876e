"""The command `run`: peers, checkpoints and cases brought together, and what came of it reported.

An interruption loses nothing: what had been judged is shown and written, under the verdict INCOMPLETE.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from rich.console import Console

from conformance import cases as case_list
from conformance import report
from conformance.cases import Case
from conformance.checkpoints import CheckpointError, resolve
from conformance.exposure import hidden
from conformance.judge import Judgement, judge
from conformance.peers import Peer, Target, create, names
from conformance.placement import release
from conformance.progress import Reporter, reporting
from t5g2ref.backend import Backend, BackendError, find

Found = list[tuple[str, Judgement]]
Plan = list[tuple[Target, Case]]


def run(options: argparse.Namespace) -> int:
    """Judge as the options say; returns the exit status of the verdict."""
    if options.json is not None:
        _check_writable(options.json)
    began, found, backend = time.perf_counter(), Found(), find(options.backend)
    peers = _peers(options.peer, backend)
    with reporting(quiet=options.no_progress) as reporter:
        made = {"synthetic": options.synthetic, "calm": options.calm}
        targets = resolve(options.ckpt, **made, progress=reporter.tensors, backend=backend)
        plan = _plan(targets, options.case or [])
        try:
            _judge_all(peers, plan, found, reporter)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    order = {target.name: i for i, (target, _) in enumerate(plan)}
    result = report.Result(
        judgements=sorted(found, key=lambda item: order[item[0]]),
        exposes={case.name: case.exposes for _, case in plan},
        hidden=hidden([t.config for t in targets], _compared(plan, found, len(peers))),
        versions={k: v for peer in peers for k, v in peer.versions().items()},
        selected=len(plan),
        available=sum(len(case_list.build(t.config)) for t in targets),
        seconds=time.perf_counter() - began,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        environment=report.environment(backend),
        interrupted=f"{len(found)} of {len(peers) * len(plan)} comparisons" if interrupted else "",
    )
    report.show(result, Console(), detail=options.detail)
    print(result.last_line(), flush=True)
    if options.json is not None:  # after the verdict, which a full disk must not cost
        report.write_json(result, options.json)
    return result.status


def _check_writable(path: Path) -> None:
    if not path.parent.is_dir():
        raise CheckpointError(f"--json {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise CheckpointError(f"--json {path}: this is a folder; name a file")


def _peers(given: list[str] | None, backend: Backend) -> list[Peer]:
    """One peer of each name; a name may be given twice, and in a shorter and a longer form."""
    made = [create(name, backend) for name in dict.fromkeys(given or names(backend))]
    return list({peer.name: peer for peer in made}.values())


def _plan(targets: list[Target], patterns: list[str]) -> Plan:
    plan = [(t, case) for t in targets for case in case_list.select(case_list.build(t.config), patterns)]
    if not plan:
        known = ", ".join(case.name for case in case_list.build(targets[0].config))
        raise CheckpointError(f"--case {' '.join(patterns)}: no case matches; there are: {known}")
    return plan


def _judge_all(peers: list[Peer], plan: Plan, found: Found, reporter: Reporter) -> None:
    """Every peer on every case, one model in memory at a time; each result goes into `found` as it comes."""
    reporter.start(len(peers) * len(plan))
    for peer in peers:
        opened = None
        for target, case in plan:
            if opened is not target:
                peer.open(target)
                opened = target
            try:
                judgement = judge(peer, target, case, reporter.say)
            except BackendError as error:  # out of memory in one case: what was judged, and what can be, is kept
                judgement = Judgement(peer.name, case.name, error=str(error))
            found.append((target.name, judgement))
            reporter.step()
        peer.close()
        release(plan[0][0].backend)


def _compared(plan: Plan, found: Found, peers: int) -> list[Case]:
    """The cases that every peer was judged on: the others exposed nothing."""
    judged = [(target, judgement.case) for target, judgement in found if not judgement.error]
    return [case for target, case in plan if judged.count((target.name, case.name)) == peers]
