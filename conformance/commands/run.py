"""The command `run`: peers, checkpoints and cases brought together, and what came of it reported.

An interruption loses nothing: what had been judged is shown and written, under the verdict INCOMPLETE.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from conformance.cases import catalogue as case_list
from conformance.cases.case import Case
from conformance.cases.plan import plan_of
from conformance.checkpoints import resolve
from conformance.commands.options import LANES, check_cases
from conformance.defects.exposure import hidden
from conformance.errors import CheckpointError
from conformance.judge.session import Found, Plan, Session
from conformance.peers.find import BUILT_IN, create, names
from conformance.peers.guard import warnings_kept
from conformance.peers.protocol import Peer
from conformance.progress import reporting
from conformance.report import files
from conformance.report import text as report
from conformance.report.known import Known
from conformance.report.known import load as load_known
from conformance.report.result import Result, environment
from conformance.target import Target
from t5g2ref.backend import Backend, find
from t5g2ref.dtypes import HALF

USUAL = ("exact", "fp32", "bf16")
UNTYPED = ("transformers:eager", "transformers:sdpa", "t5g2ref:numpy", "t5g2ref:cupy")


def run(options: argparse.Namespace) -> int:
    """Judge as the options say; returns the exit status of the verdict."""
    backend, notes = find(options.backend), list[str]()
    with warnings_kept("a peer's package", notes):
        asked = _peers(options.peer, options.lane, backend)
    for peer in asked.values():
        if isinstance(getattr(peer, "timeout", None), float):
            vars(peer)["timeout"] = options.timeout
    return judge_peers(list(asked.values()), options, backend, {peer.name: name for name, peer in asked.items()}, notes)


def judge_peers(
    peers: list[Peer],
    options: argparse.Namespace,
    backend: Backend,
    names: dict[str, str] | None = None,
    notes: Sequence[str] = (),
) -> int:
    """Everything after the peers are made: checkpoint, cases, judgement, report; returns the exit status.

    Args:
        names: a peer's name → what to give to `--peer` for it.
        notes: what was said while the peers were made.
    """
    files.check(options)
    known = load_known(options.known) if getattr(options, "known", None) else Known()
    lanes, asked = set(getattr(options, "lane", None) or USUAL), "exact" in (getattr(options, "lane", None) or ())
    began, found = time.perf_counter(), Found()
    with reporting(quiet=options.no_progress) as reporter:
        made = {"synthetic": options.synthetic, "calm": options.calm}
        targets = resolve(options.ckpt, **made, progress=reporter.tensors, backend=backend)
        targets = [t for t in targets if all(getattr(p, "accepts", _anything)(t) for p in peers)] or targets
        known.check(targets)
        plan = _plan(targets, options.case or [])
        session = Session(plan, found, reporter, exact="exact" in lanes, cases=lanes != {"exact"}, asked=asked)
        try:
            session.judge(peers)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    few = _few(plan, found)
    order = {target.name: i for i, (target, _) in enumerate(plan)}
    versions = session.versions
    judged = [(t, known.applied(j, versions.get(j.peer, {}))) for t, j in sorted(found, key=lambda i: order[i[0]])]
    result = Result(
        judgements=judged,
        exposes={case.name: case.exposes for _, case in plan},
        titles={case.name: case.title for _, case in plan},
        hidden=hidden([t.config for t in targets], _compared(plan, found, peers), _powers(found), {d for d, *_ in few}),
        versions={k: v for said in versions.values() for k, v in said.items()},
        selected=len(plan) if session.cases else 0,
        available=sum(len(case_list.build(t.config)) for t in targets),
        seconds=time.perf_counter() - began,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        environment=environment(backend),
        interrupted=f"{len(found)} of {session.total(peers)} comparisons" if interrupted else "",
        peers=names or {},
        known=known.states(),
        notes=[*notes, *_notes(peers, backend), *dict.fromkeys(note for _, note in few), *session.notes],
        command=getattr(options, "command_line", ""),
    )
    report.show(result, Console(), detail=options.detail)
    print(result.last_line(), flush=True)
    files.write(result, options)  # after the verdict, which a full disk must not cost
    return result.status


def _anything(_: Target) -> bool:
    return True


def _notes(peers: list[Peer], backend: Backend) -> list[str]:
    """What the verdict has to be read with."""
    own = [peer.name for peer in peers if peer.name.startswith(f"t5g2ref:{backend.name}:")]
    same = "is the judge's own code on the judge's own backend: this shows its rounding, and nothing of its correctness"
    return [f"{name} {same}" for name in own]


def _peers(given: list[str] | None, lanes: list[str] | None, backend: Backend) -> dict[str, Peer]:
    """Peers by the names that they were asked for; one of each, though a name may be given twice, and in a shorter
    and a longer form."""
    types = [LANES[lane] for lane in lanes or USUAL if lane in LANES] or ["float32"]
    wanted = given or [name for dtype in types for name in names(dtype)]
    if given and lanes:  # a name that may have a type and has none is run in every lane that was asked for
        wanted = [name for n in given for name in ([f"{n}:{t}" for t in types] if n in UNTYPED else [n])]
    made = _distinct([(name, create(name, backend)) for name in dict.fromkeys(wanted)])
    if lanes and (wrong := next((p for p in made.values() if p.dtype not in types), None)):
        raise CheckpointError(f"--peer {wrong.name} is in {wrong.dtype}, which is not of --lane {' '.join(lanes)}")
    return made


def _distinct(made: list[tuple[str, Peer]]) -> dict[str, Peer]:
    """The peers, none twice; different ones of one name, as two dumps of one program are, told apart by how they were
    asked for."""
    names = Counter(peer.name for _, peer in made)
    chosen: dict[str, tuple[str, Peer]] = {}
    for given, peer in made:
        if names[peer.name] > 1 and not given.startswith(tuple(BUILT_IN)):
            peer.name = f"{peer.name} [{given}]"
        chosen.setdefault(peer.name, (given, peer))
    return dict(chosen.values())


def _plan(targets: list[Target], patterns: list[str]) -> Plan:
    built = [(t, case) for t in targets for case in case_list.build(t.config)]
    check_cases(patterns, (case.name for _, case in built))
    return [(t, case) for t, case in built if case_list.select([case], patterns)]


def _compared(plan: Plan, found: Found, peers: list[Peer]) -> list[Case]:
    """The cases that every peer was judged on: the others exposed nothing."""
    judged = [(target, j.case) for target, j in found if not j.error and not j.skipped and j.case != "exact"]
    return [case for target, case in plan if judged.count((target.name, case.name)) == len(peers)]


def _few(plan: Plan, found: Found) -> list[tuple[str, str]]:
    """(type, note) of each peer that did not show every tap of a case."""
    cases = {(target.name, case.name): (target, case) for target, case in plan}
    few = dict[str, tuple[str, str]]()
    for target_name, j in found:
        if j.local and j.peer not in few:
            target, case = cases[target_name, j.case]
            if len(j.local) < (declared := len(plan_of(target.config, case))):
                shown = f"{j.peer} shows {len(j.local)} of {declared} taps (case {case.name})"
                few[j.peer] = j.dtype, f"{shown}: a fault is placed between two of them"
    return list(few.values())


def _powers(found: Found) -> dict[str, bool]:
    """Defect id → whether every peer in half precision had an input that would have shown its pattern."""
    peers = {(t, j.peer) for t, j in found if j.dtype in HALF and j.local}
    able = {(j.peer, s.defect) for _, j in found for s in j.named if s.verdict in ("named", "absent")}
    defects = {s.defect for _, j in found for s in j.named}
    return {d: bool(peers) and all((peer, d) in able for _, peer in peers) for d in defects}
