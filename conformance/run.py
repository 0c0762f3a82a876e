"""The command `run`: peers, checkpoints and cases brought together, and what came of it reported.

An interruption loses nothing: what had been judged is shown and written, under the verdict INCOMPLETE.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
from rich.console import Console

from conformance import cases as case_list
from conformance import report
from conformance.as_json import as_json
from conformance.cases import Case
from conformance.checkpoints import CheckpointError, resolve
from conformance.compare import Finding
from conformance.exact import examine_exact
from conformance.exposure import hidden
from conformance.judge import Judgement, judge
from conformance.known import Known
from conformance.known import load as load_known
from conformance.options import FILES, LANES, check_writable
from conformance.peers import Peer, Target, create, names
from conformance.placement import release
from conformance.progress import Reporter, reporting
from conformance.result import Result, environment
from t5g2ref.backend import Backend, BackendError, find
from t5g2ref.numerics import HALF, DType

USUAL = ("exact", "fp32", "bf16")
UNTYPED = ("transformers:eager", "transformers:sdpa", "t5g2ref:numpy", "t5g2ref:cupy")

Found = list[tuple[str, Judgement]]
Plan = list[tuple[Target, Case]]


def run(options: argparse.Namespace) -> int:
    """Judge as the options say; returns the exit status of the verdict."""
    backend = find(options.backend)
    return judge_peers(_peers(options.peer, options.lane, backend), options, backend)


def judge_peers(peers: list[Peer], options: argparse.Namespace, backend: Backend) -> int:
    """Everything after the peers are made: checkpoint, cases, judgement, report; returns the exit status."""
    for name in FILES:
        check_writable(f"--{name}", getattr(options, name, None))
    known = load_known(options.known) if getattr(options, "known", None) else Known()
    lanes = set(getattr(options, "lane", None) or USUAL)
    began, found = time.perf_counter(), Found()
    with reporting(quiet=options.no_progress) as reporter:
        made = {"synthetic": options.synthetic, "calm": options.calm}
        targets = resolve(options.ckpt, **made, progress=reporter.tensors, backend=backend)
        targets = [t for t in targets if all(getattr(p, "accepts", _anything)(t) for p in peers)] or targets
        plan = _plan(targets, options.case or [])
        session = _Session(plan, found, reporter, exact="exact" in lanes, cases=lanes != {"exact"})
        try:
            session.judge(peers)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    versions = {k: v for peer in peers for k, v in peer.versions().items()}
    order = {target.name: i for i, (target, _) in enumerate(plan)}
    judged = [(t, known.applied(j, versions)) for t, j in sorted(found, key=lambda item: order[item[0]])]
    result = Result(
        judgements=judged,
        exposes={case.name: case.exposes for _, case in plan},
        titles={case.name: case.title for _, case in plan},
        hidden=hidden([t.config for t in targets], _compared(plan, found, peers), _powers(found)),
        versions=versions,
        selected=len(plan),
        available=sum(len(case_list.build(t.config)) for t in targets),
        seconds=time.perf_counter() - began,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        environment=environment(backend),
        interrupted=f"{len(found)} of {session.total(peers)} comparisons" if interrupted else "",
        known=known.states(),
        notes=_notes(peers, backend),
        command=getattr(options, "command_line", ""),
    )
    report.show(result, Console(), detail=options.detail)
    print(result.last_line(), flush=True)
    _write(result, options)  # after the verdict, which a full disk must not cost
    return result.status


def _anything(_: Target) -> bool:
    return True


def _notes(peers: list[Peer], backend: Backend) -> list[str]:
    """What the verdict has to be read with."""
    own = [peer.name for peer in peers if peer.name.startswith(f"t5g2ref:{backend.name}:")]
    same = "is the judge's own code on the judge's own backend: this shows its rounding, and nothing of its correctness"
    return [f"{name} {same}" for name in own]


def _write(result: Result, options: argparse.Namespace) -> None:
    """The files that were asked for; all of them are made from the one document."""
    asked = {name: path for name in FILES if (path := getattr(options, name, None)) is not None}
    if not asked:
        return
    document = as_json(result)
    for name, path in asked.items():
        if name == "json":
            path.write_text(document + "\n", encoding="utf-8")
        elif name == "junit":
            from conformance import junit

            path.write_text(junit.render(json.loads(document)), encoding="utf-8")
        else:
            from conformance import html

            path.write_text(html.render(json.loads(document)), encoding="utf-8")


def _peers(given: list[str] | None, lanes: list[str] | None, backend: Backend) -> list[Peer]:
    """One peer of each name; a name may be given twice, and in a shorter and a longer form."""
    types = [LANES[lane] for lane in lanes or USUAL if lane in LANES] or ["float32"]
    wanted = given or [name for dtype in types for name in names(dtype)]
    if given and lanes:  # a name that may have a type and has none is run in every lane that was asked for
        wanted = [name for n in given for name in ([f"{n}:{t}" for t in types] if n in UNTYPED else [n])]
    made = [create(name, backend) for name in dict.fromkeys(wanted)]
    if lanes and (wrong := next((p for p in made if p.dtype not in types), None)):
        raise CheckpointError(f"--peer {wrong.name} is in {wrong.dtype}, which is not of --lane {' '.join(lanes)}")
    return list({peer.name: peer for peer in made}.values())


def _plan(targets: list[Target], patterns: list[str]) -> Plan:
    plan = [(t, case) for t in targets for case in case_list.select(case_list.build(t.config), patterns)]
    if not plan:
        known = ", ".join(case.name for case in case_list.build(targets[0].config))
        raise CheckpointError(f"--case {' '.join(patterns)}: no case matches; there are: {known}")
    return plan


class _Session:
    """Every peer on every case, one model in memory at a time; each result goes into `found` as it comes."""

    def __init__(self, plan: Plan, found: Found, reporter: Reporter, *, exact: bool, cases: bool) -> None:
        self._plan, self._found, self._reporter = plan, found, reporter
        self._exact, self._cases = exact, cases
        self._targets = list({id(target): target for target, _ in plan}.values())

    def total(self, peers: list[Peer]) -> int:
        """How many judgements there will be."""
        return len(peers) * (len(self._plan) * self._cases + len(self._targets) * self._exact)

    def judge(self, peers: list[Peer]) -> None:
        self._reporter.start(self.total(peers))
        for peer in peers:
            for target in self._targets:
                self._on(peer, target)
            peer.close()
            release(self._plan[0][0].backend)

    def _on(self, peer: Peer, target: Target) -> None:
        """One peer on one checkpoint. What it cannot load is an error of each case, and no end of the run."""
        before = fingerprint(target, peer)
        opened = self._guarded(peer, target, "", partial(peer.open, target))
        refused = opened.error if opened is not None else ""
        if self._exact and getattr(peer, "probed", True):  # a dump can only be read
            self._one(peer, target, "exact", refused, partial(_exactly, peer, target, self._reporter.say))
        for case in (case for of, case in self._plan if of is target and self._cases):
            self._one(peer, target, case.name, refused, partial(judge, peer, target, case, self._reporter.say))
        if fingerprint(target, peer) != before:
            detail = "the peer changed the weights that it was given in place: nothing that was judged here counts"
            spoiled = Finding("weights", 0, "exact", detail=detail)
            self._found.append((target.name, Judgement(peer.name, "exact", exact=[spoiled], dtype=peer.dtype)))

    def _one(self, peer: Peer, target: Target, name: str, refused: str, judging: Callable[[], Judgement]) -> None:
        failed = Judgement(peer.name, name, error=refused, dtype=peer.dtype)
        result = failed if refused else self._guarded(peer, target, name, judging)
        self._found.append((target.name, result or failed))
        self._reporter.step()

    def _guarded(self, peer: Peer, target: Target, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; where there is no room for it, a judgement with that error, and the memory given back."""
        try:
            return work()
        except BackendError as error:
            failed = Judgement(peer.name, name, error=str(error), dtype=peer.dtype)
        gc.collect()  # arrays in the frames of the error, which a collector that knows host memory alone would leave
        release(target.backend)
        return failed


def _exactly(peer: Peer, target: Target, progress: Callable[[str], None]) -> Judgement:
    """The exact lane: weights after the peer's loader, ids and embedding rows, masks by probing."""
    began = time.perf_counter()
    progress(f"exact lane: {peer.name}")
    try:
        findings, error = examine_exact(peer, target, cast(DType, peer.dtype), progress), ""
    except BackendError:
        raise
    except Exception as raised:  # whatever a foreign program raises is a finding, not our crash
        findings, error = [], f"{type(raised).__name__}: {raised}"
    if not error:  # a probe that the peer raised on, or skipped, is no fault: it is not known
        error = next((f.detail for f in findings if f.status == "missing" and not f.tap.startswith("weights")), "")
    seconds = {"exact": time.perf_counter() - began}
    return Judgement(peer.name, "exact", error=error, exact=findings, seconds=seconds, dtype=peer.dtype)


def fingerprint(target: Target, peer: Peer) -> list[int]:
    """A sum of the bits of every tensor that the truth and a peer in memory may share."""
    xp = target.backend.xp
    with target.backend.scope():
        weights = target.rounded(cast(DType, peer.dtype)).values()
        words = [w.reshape(-1).view(np.uint32 if w.dtype.itemsize == 4 else np.uint16) for w in weights]
        sums = xp.stack([xp.sum(word, dtype=np.uint64) for word in words])
        return [int(total) for total in target.backend.host(sums)]


def _compared(plan: Plan, found: Found, peers: list[Peer]) -> list[Case]:
    """The cases that every peer was judged on: the others exposed nothing."""
    judged = [(target, j.case) for target, j in found if not j.error and not j.skipped and j.case != "exact"]
    return [case for target, case in plan if judged.count((target.name, case.name)) == len(peers)]


def _powers(found: Found) -> dict[str, bool]:
    """Defect id → whether every peer in half precision had an input that would have shown its pattern."""
    peers = {(t, j.peer) for t, j in found if j.dtype in HALF and j.local}
    able = {(j.peer, s.defect) for _, j in found for s in j.named if s.verdict != "no power"}
    defects = {s.defect for _, j in found for s in j.named}
    return {d: bool(peers) and all((peer, d) in able for _, peer in peers) for d in defects}
