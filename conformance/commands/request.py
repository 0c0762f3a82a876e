"""The request to judge: the options of a command line, checked, with every default filled in."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from conformance.cases import catalogue, generating
from conformance.cases.case import Case
from conformance.cases.each_kind import ALL
from conformance.cases.prompt import GENERATE
from conformance.checkpoints import BUNDLED
from conformance.commands import options as shared
from conformance.commands.options import LANES
from conformance.commands.required import required
from conformance.errors import PeerBroken, UsageError
from conformance.peers.find import BUILT_IN, DUMP, alone, broken, create, described, names, typed
from conformance.peers.folder import DumpPeer
from conformance.peers.guard import PACKAGE, warnings_kept
from conformance.peers.protocol import TIMEOUT, OptionalMembers, Peer, give_time, optional
from conformance.peers.python_file import checksum
from conformance.report import files
from conformance.report.known import Known
from conformance.report.known import load as load_known
from conformance.report.result import environment
from conformance.report.terms import Asked, Chosen, Terms, cases
from conformance.sweep.share import Share, parse
from t5g2ref.backend import Backend, find
from t5g2ref.config import Config
from t5g2ref.dtypes import RUN_IN

USUAL = ("exact", "fp32", "bf16", GENERATE)
TYPES = LANES | {GENERATE: generating.TYPE}
"""A lane → the type in which peers run in it."""


@dataclass(frozen=True, kw_only=True)
class Request(Chosen):
    """One request to judge peers.

    Args:
        peers: the peers to judge, made and not yet opened.
        backend: where truth and controls are computed.
        detail, progress: what the terminal shows.
        known: known deviations.
        outputs: kind of file ("json", "junit", "html", "markdown", "badge") → its path.
        names: a peer's name → what to give to `--peer` for it.
        command: the command line, for whoever reproduces the report.
        timeout: seconds for each answer of a process.
        jobs: how many processes judge; None for as many as are usual.
        cluster: the address of a Dask scheduler whose workers judge; "" for this machine.
        first: whether the first checkpoint alone is judged on.
        share: which part of the comparisons is made; None for all.
        resume: the file where comparisons are kept as they end; None for none.
        cases_of: makes the cases for a geometry; None for those of the catalogue.
    """

    peers: tuple[Peer, ...]
    backend: Backend
    detail: bool = False
    progress: bool = True
    known: Known = field(default_factory=Known)
    outputs: Mapping[str, Path] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    timeout: float = TIMEOUT
    jobs: int | None = None
    cluster: str = ""
    first: bool = False
    cases_of: Callable[[Config], list[Case]] | None = None
    share: Share | None = None
    resume: Path | None = None

    def build(self, config: Config) -> list[Case]:
        """The cases for a geometry."""
        return self.cases_of(config) if self.cases_of else cases(self.terms(), config)

    def terms(self) -> Terms:
        """What was asked, in a form that a file can hold."""
        chosen: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Chosen)}
        peers = tuple(self._asked(peer) for peer in self.peers)
        return Terms(peers=peers, environment=environment(self.backend), known=self.known.mark, **chosen)

    def _asked(self, peer: Peer) -> Asked:
        preallocated, probed = (bool(optional(peer, name)) for name in ("preallocated", "probed"))
        generates, prepares = (optional(peer, name) is not None for name in ("generate", "preprocess"))
        given = self.names.get(peer.name)
        mark = checksum(given) if given else ""
        return Asked(peer.name, peer.dtype, given, mark, preallocated, probed, generates, prepares)


def of_run(given: argparse.Namespace) -> Request:
    """The request of the command `run`. Raises UsageError or PeerUnavailable for what cannot be judged."""
    given, backend, notes = _quick(given), find(given.backend), list[str]()
    with warnings_kept(PACKAGE, notes):
        peers = _peers(given.peer, given.lane, backend, late=_in_processes(given))
    given = argparse.Namespace(**vars(given) | {"ckpt": given.ckpt or _usual(peers.values())})
    for peer in peers.values():
        give_time(peer, given.timeout)
    lanes, named = set(given.lane or USUAL), GENERATE in (given.lane or ())
    return _request(
        given,
        list(peers.values()),
        backend,
        exact="exact" in lanes,
        asked="exact" in (given.lane or ()),
        values=bool(lanes & set(LANES)),
        generate=named or (GENERATE in lanes and any(map(generates, peers.values()))),
        generating=named,
        names={peer.name: name for name, peer in peers.items()},
        notes=tuple(notes),
    )


def generates(peer: Peer) -> bool:
    """Whether the generation lane can have the peer."""
    return optional(peer, "generate") is not None and peer.dtype == generating.TYPE


def _quick(given: argparse.Namespace) -> argparse.Namespace:
    """The options with what `--quick` stands for. Raises UsageError beside another choice of cases."""
    if not getattr(given, "quick", False):
        return given
    if given.case or given.require:
        raise UsageError("--quick chooses the cases itself: leave out --case and --require, or --quick")
    chosen = {"case": list(catalogue.QUICK), "lane": given.lane or ["fp32"], "once": True}
    return argparse.Namespace(**vars(given) | chosen | {"peer": given.peer or ["transformers:sdpa"]})


def _usual(peers: Iterable[Peer]) -> str:
    """The checkpoint to judge on where none is named: an engine with the released settings alone asks for its own."""
    usual = OptionalMembers.checkpoint
    return next((name for peer in peers if (name := optional(peer, "checkpoint")) != usual), usual)


def of_dump(given: argparse.Namespace, peer: DumpPeer) -> Request:
    """The request of the command `check`: one peer, without the exact lane, since a dump cannot be probed."""
    made = _request(given, [peer], find(given.backend), exact=False, names={peer.name: f"{DUMP}{given.folder}"})
    return replace(made, rows=peer.by_rows)


def of_replay(given: argparse.Namespace, peer: Peer, cases_of: Callable[[Config], list[Case]]) -> Request:
    """The request of the command `replay`: one peer, which answers the cases that its own file makes."""
    made = _request(given, [peer], find(given.backend), exact=False, names={peer.name: ""})
    return replace(made, cases_of=cases_of)


def _request(
    given: argparse.Namespace,
    peers: list[Peer],
    backend: Backend,
    *,
    exact: bool,
    asked: bool = False,
    values: bool = True,
    generate: bool = False,
    generating: bool = False,
    names: Mapping[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> Request:
    """The request, with the options that both commands share. Output files are checked first."""
    outputs = files.chosen(given)
    files.check(outputs)
    resume = _resume(getattr(given, "resume", None), outputs)
    share = _share(getattr(given, "shard", None), outputs)
    return Request(
        peers=tuple(peers),
        backend=backend,
        ckpt=given.ckpt,
        synthetic=given.synthetic,
        calm=given.calm,
        stream=getattr(given, "stream", None),
        layers=getattr(given, "layers", None) or ALL,
        cases=tuple(given.case or ()),
        exact=exact,
        asked=asked,
        values=values,
        generate=generate,
        generating=generating,
        detail=given.detail,
        progress=not given.no_progress,
        known=load_known(given.known) if given.known else Known(),
        outputs=outputs,
        names=names or {},
        notes=notes,
        command=getattr(given, "command_line", ""),
        timeout=getattr(given, "timeout", TIMEOUT),
        jobs=shared.processes(given),
        cluster=shared.scheduler(given),
        rows=getattr(given, "rows", False),
        first=getattr(given, "quick", False),
        repeat=not getattr(given, "once", False),
        required=required(given),
        share=share,
        resume=resume,
    )


def _resume(given: Path | None, outputs: Mapping[str, Path]) -> Path | None:
    """The file of `--resume`. Raises UsageError where it cannot be written or is an output's too."""
    files.check_writable("--resume", given)
    if given is not None and (same := [kind for kind, path in outputs.items() if path.resolve() == given.resolve()]):
        raise UsageError(f"--resume and --{same[0]} name the same file, {given}; give each its own")
    return given


def _share(given: str | None, outputs: Mapping[str, Path]) -> Share | None:
    """What `--shard` asks for. Raises UsageError where nothing would come of it."""
    share = None if given is None else parse(given)
    if share is not None and set(outputs) != {"json"}:
        others = ", ".join(f"--{kind}" for kind in outputs if kind != "json")
        what = f"leave out {others}, which merge writes" if others else "give --json FILE, which merge reads"
        raise UsageError(f"--shard {share}: {what}")
    return share


def _in_processes(given: argparse.Namespace) -> bool:
    """Whether other processes may be the ones that judge: then nothing is imported here that only they need."""
    if shared.scheduler(given):
        return True
    bundled = given.ckpt in (None, *BUNDLED) and not given.synthetic
    return (shared.processes(given) or (bundled and os.cpu_count()) or 1) > 1


def _peers(
    given: list[str] | None, lanes: list[str] | None, backend: Backend, *, late: bool = False
) -> dict[str, Peer]:
    """The peers that were asked for, by the name given. A peer that was named twice, or in two forms, comes once.

    Args:
        late: whether a peer may be made when it is asked for something.
    """
    types = list(dict.fromkeys(TYPES[lane] for lane in lanes or USUAL if lane in TYPES)) or ["float32"]
    wanted = given or [name for dtype in types for name in names(dtype)]
    if given and lanes:  # a name without a type is run in every lane that was asked for
        wanted = [name for n in given for name in ([typed(n, t) for t in types] if typed(n, types[0]) else [n])]
    distinct = list(dict.fromkeys(wanted))
    made = _distinct([(name, _made(name, types[0], backend, late=late, lone=alone(distinct))) for name in distinct])
    if lanes and (wrong := next((p for p in made.values() if p.dtype not in types), None)):
        raise UsageError(f"--peer {wrong.name} runs in {wrong.dtype}, expected a type of --lane {' '.join(lanes)}")
    return made


def _made(name: str, dtype: str, backend: Backend, *, late: bool, lone: bool) -> Peer:
    """The peer of that name. One that is broken ends a run that has no other; its type may not be known then."""
    try:
        return (described(name, backend) if late else None) or create(name, backend)
    except PeerBroken as error:
        if lone:
            raise
        typed = next((part for part in name.split(":") if part in RUN_IN), dtype)
        return broken(name, typed, error)


def _distinct(made: list[tuple[str, Peer]]) -> dict[str, Peer]:
    """The peers, each once.

    Different peers of one name, such as two dumps of one program, get what was given to `--peer` behind their name.
    """
    alike = Counter(peer.name for _, peer in made)
    chosen: dict[str, tuple[str, Peer]] = {}
    for given, peer in made:
        if alike[peer.name] > 1 and not given.startswith(tuple(BUILT_IN)):
            peer.name = f"{peer.name} [{given}]"
        chosen.setdefault(peer.name, (given, peer))
    return dict(chosen.values())
