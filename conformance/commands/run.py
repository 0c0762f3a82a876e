"""The command `run`: judges peers on checkpoints and cases, and reports what was found.

An interruption loses nothing: what was judged until then is shown and written. The verdict is then INCOMPLETE, unless
a peer deviates.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import time
from dataclasses import replace

from conformance.cases import catalogue as case_list
from conformance.cases.case import Case
from conformance.cases.plan import plan_of
from conformance.checkpoints import BUNDLED, resolve
from conformance.commands.diagnose import diagnoses
from conformance.commands.options import check_cases
from conformance.commands.request import Request, of_run
from conformance.commands.required import coverage, inside
from conformance.defects.catalogue import DEFECTS
from conformance.defects.exposure import hidden, reach
from conformance.judge.pooled import pooled
from conformance.judge.session import Found, Plan, Session
from conformance.judge.steady import steadiness
from conformance.judge.together import TOGETHER, together
from conformance.measure.causes import layer_types
from conformance.peers.find import create, other_type
from conformance.peers.protocol import Peer, optional
from conformance.progress import Reporter, reporting
from conformance.report import files
from conformance.report import text as report
from conformance.report.called import labels, renamed
from conformance.report.log_probs import farthest
from conformance.report.result import Result, environment
from conformance.sweep import shards
from conformance.target import Target
from conformance.terminal import console
from t5g2ref.backend import Backend
from t5g2ref.dtypes import HALF

NOT_OURS = "what these prompts reach is not known: they are no cases of the suite's own"
WORTH = 40  # comparisons, from which on processes pay


def run(options: argparse.Namespace) -> int:
    """Judge as the options say; returns the verdict's exit status."""
    return judge_peers(of_run(options))


def judge_peers(request: Request) -> int:
    """Judge the peers on their checkpoints and cases, and report; returns the verdict's exit status."""
    result = result_of(request)
    try:
        report.show(result, console(), detail=request.detail)
        print(result.last_line(), flush=True)
    except (OSError, KeyboardInterrupt):  # a reader who has gone must not cost the files
        files.write(result, request.outputs)
        raise
    files.write(result, request.outputs)  # after the verdict, which a full disk must not cost
    return result.status


def result_of(request: Request) -> Result:
    """Judge the peers on their checkpoints and cases; an interruption is part of the result."""
    began, found, interrupted = time.perf_counter(), Found(), False
    with reporting(quiet=not request.progress) as reporter:
        targets = _targets(request, reporter)
        plan = _plan(request, targets)
        if request.required is not None:
            request.required.check(case.name for _, case in plan)
        judged_on = list({id(target): target for target, _ in plan}.values())
        session = Session(
            judged_on,
            [(target, case) for target, case in plan if request.asks(case)],
            found,
            reporter,
            exact=request.exact,
            asked=request.asked,
            generating=request.generating,
            repeat=request.repeat,
            required=request.required,
            others=_others(request),
        )
        answer = shards.Answer(session.versions, session.called, session.notes)
        try:
            _judged(request, plan, session, found, answer, reporter)
        except KeyboardInterrupt:
            interrupted = True
    result = _result(request, targets, plan, session, found)
    with reporting(quiet=not request.progress) as reporter:
        told = [] if interrupted else diagnoses(targets, result.judgements, reporter.say, request.build)
    return replace(
        result,
        diagnoses=told,
        seconds=time.perf_counter() - began,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + sum(answer.peak.values()),
        interrupted=f"{len(found)} of {session.total(list(request.peers))} comparisons" if interrupted else "",
    )


def _judged(
    request: Request, plan: Plan, session: Session, found: Found, answer: shards.Answer, reporter: Reporter
) -> None:
    """Judge in this process, or in as many as were asked for, which then give what comes beside the judgements."""
    total = session.total(list(request.peers))
    processes = _processes(request, total)
    if processes == 1:
        session.judge(list(request.peers))
        return
    pieces = shards.shards(plan, dict(request.names), processes, exact=request.exact, asks=request.asks)
    question = shards.Question(
        ckpt=request.ckpt,
        synthetic=request.synthetic,
        calm=request.calm,
        backend=request.backend.name,
        timeout=request.timeout,
        asked=request.asked,
        alone=len(request.peers) == 1,
        repeat=request.repeat,
        required=request.required,
        rows=request.rows,
        generating=request.generating,
    )
    reporter.start(total)

    def told(what: str) -> None:
        reporter.say(what)
        reporter.step()

    shards.judged(question, pieces, processes, found, answer, told)


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


def _targets(request: Request, reporter: Reporter) -> list[Target]:
    """The checkpoints that every peer accepts; if there is none, all of them."""
    made = {"synthetic": request.synthetic, "calm": request.calm}
    targets = resolve(request.ckpt, **made, progress=reporter.tensors, backend=request.backend)
    targets = [t for t in targets if all(optional(p, "accepts")(t) for p in request.peers)] or targets
    targets = targets[:1] if request.first else targets
    request.known.check(targets)
    return targets


def _result(request: Request, targets: list[Target], plan: Plan, session: Session, found: Found) -> Result:
    """The judgements in the order of the checkpoints, with everything else that a report says."""
    found = [*found, *together(found), *pooled(found)]
    versions, peers = session.versions, list(request.peers)
    targets_, peers_ = [list(dict.fromkeys(names)) for names in ([t.name for t, _ in plan], [p.name for p in peers])]
    order = dict.fromkeys(case.name for _, case in plan)
    places = {"exact": -1, TOGETHER: len(order), **{name: i for i, name in enumerate(order)}}
    ordered = sorted(found, key=lambda f: (targets_.index(f[0]), peers_.index(f[1].peer), places[f[1].case]))
    known = [(t, request.known.applied(j, versions.get(j.peer, {}))) for t, j in ordered]
    called = labels(peers_, session.called)
    found = [(target, replace(j, peer=called[j.peer])) for target, j in known]
    few = _few(plan, found)
    return Result(
        judgements=found,
        exposes={case.name: case.exposes for _, case in plan},
        titles={case.name: case.title for _, case in plan},
        hidden=dict.fromkeys(DEFECTS, NOT_OURS)
        if request.cases_of
        else hidden(
            [t.config for t in targets],
            _compared(plan, found, peers),
            _powers(found),
            {d for d, *_ in few},
            outside={j.dtype for _, j in inside(found) if j.outside},
            quantised={j.dtype for _, j in found if j.scheme},
            single=_in_single(found),
            repeated=all(j.repeated and not j.unmixed for _, j in found if j.local),
            preallocated=all(optional(peer, "preallocated") for peer in peers),
        ),
        versions={k: v for said in versions.values() for k, v in said.items()},
        selected=sum(request.asks(case) for _, case in plan),
        available=len(_built(request, targets)),
        environment=environment(request.backend),
        peers={called.get(name, name): given for name, given in request.names.items()},
        known=request.known.states(),
        notes=[
            *request.notes,
            *(note for target in targets for note in target.notes),
            *_notes(peers, found, request.backend),
            *dict.fromkeys(note for _, note in few),
            *_wider(found),
            *reach(_judged_on(plan, found)),
            *farthest(found),
            *steadiness(found, {called[p.name] for p in peers if not (request.repeat and optional(p, "probed"))}),
            *(renamed(note, called) for note in session.notes),
        ],
        command=request.command,
        covers=coverage(request.required, plan, found),
        layers={t.name: layer_types(t.config) for t in targets},
    )


def _notes(peers: list[Peer], found: Found, backend: Backend) -> list[str]:
    """Caveats printed beside the verdict."""
    as_good = "CONFORMS says as good as this quantisation allows, beside legal runs whose linear layers are rounded so"
    yet = dict.fromkeys(f"{j.peer} declares {j.scheme}: {as_good}" for _, j in found if j.scheme)
    own = [peer.name for peer in peers if peer.name.startswith(f"t5g2ref:{backend.name}:")]
    same = "is the judge's own code on the judge's own backend: this shows its rounding, and nothing of its correctness"
    return [*yet, *(f"{name} {same}" for name in own)]


def _built(request: Request, targets: list[Target]) -> Plan:
    """Every case of every checkpoint; the costly ones of the first alone."""
    return [(t, case) for t in targets for case in request.build(t.config) if t is targets[0] or not case.costly]


def _plan(request: Request, targets: list[Target]) -> Plan:
    built, patterns = _built(request, targets), list(request.cases)
    check_cases(patterns, (case.name for _, case in built))
    return [(t, case) for t, case in built if case_list.select([case], patterns)]


def _compared(plan: Plan, found: Found, peers: list[Peer]) -> list[Case]:
    """The cases that every peer was judged on that they ask for; the others exposed nothing."""
    judged = [
        (target, j.case) for target, j in found if not j.error and not j.skipped and j.case not in ("exact", TOGETHER)
    ]
    asked = {id(case): sum(case.asks(peer.dtype) for peer in peers) for _, case in plan}
    return [case for t, case in plan if judged.count((t.name, case.name)) == asked[id(case)] > 0]


def _judged_on(plan: Plan, found: Found) -> list[tuple[str, Case]]:
    """(type, case) of every peer that was judged on a case."""
    cases = {(target.name, case.name): case for target, case in plan}
    return [(j.dtype, j.made or cases[target, j.case]) for target, j in found if j.local]


def _few(plan: Plan, found: Found) -> list[tuple[str, str]]:
    """(type, note) of each peer that did not show every tap of a case."""
    cases = {(target.name, case.name): (target, case) for target, case in plan}
    few = dict[str, tuple[str, str]]()
    for target_name, j in inside(found):
        if j.local and j.peer not in few:
            target, case = cases[target_name, j.case]
            if j.outside:
                few[j.peer] = j.dtype, f"{j.peer} shows {j.outside}: where a mistake is inside cannot be seen"
            elif len(j.local) < (declared := len(plan_of(target.config, case))):
                shown = f"{j.peer} shows {len(j.local)} of {declared} taps (case {case.name})"
                few[j.peer] = j.dtype, f"{shown}: a mistake can only be placed between two of them"
    return list(few.values())


def _wider(found: Found) -> list[str]:
    """A note for each peer with values of more bits than it declares."""
    taps = dict[tuple[str, str], dict[str, str]]()
    for _, j in found:
        if j.wider:
            taps.setdefault((j.peer, j.dtype), {}).update(j.wider)
    return [
        f"{peer} declares {dtype} and shows {', '.join(sorted(set(wide.values())))} at {len(wide)} taps, first "
        f"{next(iter(wide))}: judged as shown; more bits are no mistake"
        for (peer, dtype), wide in taps.items()
    ]


def _in_single(found: Found) -> bool:
    """Whether all peers were judged in float32; of one that was not, what is below a half type's rounding is open."""
    types: dict[str, set[str]] = {}
    for _, j in found:
        if j.local:
            types.setdefault(re.sub(r":(bfloat16|float16|float32)\b.*", "", j.peer), set()).add(j.dtype)
    return all("float32" in seen for seen in types.values())


def _powers(found: Found) -> dict[str, bool]:
    """Defect id → whether every peer in half precision had an input that would have shown its pattern."""
    peers = {(t, j.peer) for t, j in found if j.dtype in HALF and j.local}
    able = {(j.peer, s.defect) for _, j in found for s in j.named if s.verdict in ("named", "absent")}
    defects = {s.defect for _, j in found for s in j.named}
    return {d: bool(peers) and all((peer, d) in able for _, peer in peers) for d in defects}
