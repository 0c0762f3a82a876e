"""Judges in several processes. Every shard is some cases of one peer on one checkpoint; what is found is told at once.

A worker reads the checkpoint and makes the peer itself, by the name that it was asked for.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from conformance.cases import catalogue, generating
from conformance.cases.abilities import Required
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from conformance.judge.judgement import Judgement
from conformance.judge.session import Found, Plan, Session
from conformance.peers.find import create, other_type
from conformance.peers.protocol import give_time
from conformance.progress import reporting
from conformance.sweep.pool import CONTEXT, done
from conformance.target import Target
from t5g2ref.backend import find

SHARDS = 4  # for each process, so that none is left alone with the last


@dataclass(frozen=True)
class Shard:
    """Some cases of one peer on one checkpoint.

    Args:
        peer, given: its name, and what `--peer` has to be given for it.
        target: the checkpoint's name.
        cases: names; the exact lane beside them where `exact` is true.
        other: what `--peer` has to be given for the same peer in another type; "" for none.
    """

    peer: str
    given: str
    target: str
    cases: tuple[str, ...]
    exact: bool
    other: str


@dataclass(frozen=True)
class Question:
    """What all shards have in common; see `commands.request.Request`."""

    ckpt: str
    synthetic: bool
    calm: bool
    backend: str
    timeout: float
    asked: bool
    alone: bool
    repeat: bool
    required: Required | None = None
    rows: bool = False
    generating: bool = False


@dataclass
class Answer:
    """What came of shards beside the judgements; `peak` has the bytes of each process."""

    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    peak: dict[int, int] = field(default_factory=dict)

    def add(self, other: Answer) -> None:
        self.versions |= other.versions
        self.called |= other.called
        self.notes += [note for note in other.notes if note not in self.notes]
        self.peak |= other.peak


def shards(
    plan: Plan, peers: dict[str, str], processes: int, *, exact: bool, asks: Callable[[Case], bool]
) -> list[Shard]:
    """The plan in pieces of about one size; the longest, which are those of half types, come first.

    Args:
        exact: whether the exact lane is wanted; asks: whether a case is.
    """
    targets = dict.fromkeys(target.name for target, _ in plan)
    pieces = max(1, -(-SHARDS * processes // max(1, len(targets) * len(peers))))
    found, others = [], {given: other_type(given, peers.values()) for given in peers.values()}
    for target in targets:
        names = [case.name for of, case in plan if of.name == target and asks(case)]
        for peer, given in peers.items():
            for i in range(pieces):
                part = tuple(names[i::pieces])
                if part or (exact and i == 0):
                    found.append(Shard(peer, given, target, part, exact and i == 0, others[given]))
    return sorted(found, key=lambda shard: "float16" not in shard.peer)


class _Told(list[tuple[str, Judgement]]):
    """A list of judgements that tells of each as it comes."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, item: tuple[str, Judgement]) -> None:
        super().append(item)
        self._tell(item)


@dataclass
class _Worker:
    question: Question
    targets: dict[str, Target]
    cases: dict[str, list[Case]]
    queue: Any


def _start(question: Question, queue: Any) -> _Worker:
    q = question
    made = resolve(q.ckpt, synthetic=q.synthetic, calm=q.calm, backend=find(q.backend))
    build = catalogue.build_rows if q.rows else catalogue.build
    cases = {t.name: [*build(t.config), *generating.build(t.config)] for t in made}
    return _Worker(q, {t.name: t for t in made}, cases, queue)


def _work(worker: _Worker, shard: Shard) -> Answer:
    """Judge one shard. Each judgement is told with what is known beside it: the run may be stopped before the end."""
    target = worker.targets[shard.target]
    peer = create(shard.given, target.backend)
    peer.name = shard.peer
    give_time(peer, worker.question.timeout)
    plan = [(target, case) for case in worker.cases[shard.target] if case.name in shard.cases]
    with reporting(quiet=True) as reporter:
        session = Session(
            [target],
            plan,
            _Told(lambda item: worker.queue.put((item, _beside(session)))),
            reporter,
            exact=shard.exact,
            asked=worker.question.asked,
            generating=worker.question.generating,
            alone=worker.question.alone,
            repeat=worker.question.repeat,
            required=worker.question.required,
            others={peer.name: create(shard.other, target.backend)} if shard.other else {},
        )
        session.judge([peer])
    return _beside(session)


def _beside(session: Session) -> Answer:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Answer(session.versions, session.called, session.notes, {os.getpid(): peak})


def judged(
    question: Question,
    pieces: list[Shard],
    processes: int,
    found: Found,
    answer: Answer,
    step: Callable[[str], None],
) -> None:
    """Judge all shards. What is found goes into `found` and `answer` as it comes: an interruption loses nothing.

    `step` is called for each judgement, with what it is of.
    """
    queue = CONTEXT.SimpleQueue()

    def heard() -> None:
        while not queue.empty():
            (target, judgement), beside = queue.get()
            found.append((target, judgement))
            answer.add(beside)
            step(f"{judgement.case}: {judgement.peer}")

    for _, beside in done(_start, (question, queue), _work, pieces, processes, heard):
        answer.add(beside)
    heard()
