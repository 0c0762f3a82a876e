"""Judges in several processes, one comparison after another, which are told as they end.

A worker borrows the checkpoint from the one who asks, or makes it where that cannot be, and makes the peer by the name
that it was asked for. It keeps a peer open as long as the next comparison is of the same one on the same checkpoint.
Small peers of one type are open side by side, and take turns at each case.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

from conformance.arrays import has_device, release
from conformance.checkpoints import BUNDLED, resolve
from conformance.errors import PeerBroken
from conformance.exchange.plain import PlainError, decoded, encoded
from conformance.judge.along import Along
from conformance.judge.comparisons import Comparison
from conformance.judge.judgement import Judgement
from conformance.judge.session import asked
from conformance.judge.sitting import Beside, Manner, Sitting, closed
from conformance.peers.find import BUILT_IN, alone, broken, create, other_type
from conformance.peers.guard import PACKAGE, PeerError, call, warnings_kept
from conformance.peers.protocol import Peer, give_time, optional
from conformance.report.terms import Terms, Work, work
from conformance.sweep import heap
from conformance.sweep import record as records
from conformance.sweep.alike import refuse_other_device, refuse_other_peers, refuse_other_weights
from conformance.sweep.card import bytes_of_weights
from conformance.sweep.engine import Engine
from conformance.sweep.lent import FAILURES, Lent, borrowed
from conformance.sweep.record import Record
from conformance.sweep.room import bytes_on_device
from conformance.sweep.task import Task
from conformance.target import Target
from t5g2ref.backend import Backend, BackendError, find
from t5g2ref.dtypes import DType


@dataclass(frozen=True)
class Question:
    """What a worker has to know; all else is in the comparison that it gets.

    Args:
        peers: a peer's name → what `--peer` has to be given for it.
        targets: names of the checkpoints that are judged on, of those that `terms.ckpt` stands for.
        timeout: seconds for each answer of a process.
        stream: whether the one who asks streams the weights; then all do.
        lent: the checkpoints whose weights that one shares; none where each worker makes its own.
        marks: a checkpoint's name → the fingerprint that its weights have to have; none where nobody else reads them.
    """

    terms: Terms
    peers: Mapping[str, str]
    targets: tuple[str, ...]
    backend: str
    timeout: float
    marks: Mapping[str, str] = field(default_factory=dict)
    stream: bool | None = None
    lent: tuple[Lent, ...] = ()

    @property
    def shares(self) -> bool:
        """Whether peers of one type are judged in turns on each case: where several fit beside each other."""
        terms = self.terms
        bundled = terms.ckpt in BUNDLED and not terms.synthetic
        return bundled and all(name.startswith(BUILT_IN) for name in self.peers.values())

    @cached_property
    def types(self) -> dict[str, str]:
        """Peer → the type that it runs in."""
        return {peer.name: peer.dtype for peer in self.terms.peers}

    def together(self, one: Comparison) -> tuple[str, str]:
        """What a process has open at a time: a checkpoint, and a peer or a type."""
        return one.target, self.types[one.peer] if self.shares else one.peer


@dataclass(frozen=True)
class Answer:
    """What a worker found in one comparison.

    Args:
        beside: all that it knows beside the judgements.
        process, peak: its machine and id, and the most memory that it had, in bytes, without what it borrowed.
        lost: whether this stands for an answer that never came.
    """

    judgements: Sequence[Judgement]
    beside: Beside
    process: str = ""
    peak: int = 0
    lost: bool = False


@dataclass
class _Worker:
    question: Question
    work: Work
    beside: Beside = field(default_factory=Beside)
    at: tuple[str, str] = ("", "")
    open: dict[str, tuple[Peer, Sitting]] = field(default_factory=dict)
    shared: Along | None = None


def _start(question: Question) -> _Worker:
    terms, backend = question.terms, find(question.backend)
    if question.marks:
        refuse_other_peers(terms)
        refuse_other_device(terms, backend)
    targets, beside = _targets(question, backend)
    if not any(target.streamed or has_device(target.backend) for target in targets):
        heap.keep()
    if question.marks:
        refuse_other_weights(targets, question.marks)
    return _Worker(question, work(terms, targets), beside, shared=Along() if question.shares else None)


def _targets(question: Question, backend: Backend) -> tuple[list[Target], Beside]:
    """The checkpoints: borrowed, or where that cannot be, made again; and what is to be said of it."""
    terms, beside = question.terms, Beside()
    if question.lent:
        try:
            return [borrowed(lent, backend) for lent in question.lent], beside
        except FAILURES as error:
            beside.note(f"a process made the weights again: {error}")
    how: dict[str, Any] = {"synthetic": terms.synthetic, "calm": terms.calm, "stream": question.stream}
    how["layers"] = terms.layers
    try:
        made = resolve(terms.ckpt, **how, backend=backend)
    except BackendError as error:  # a device that was to hold them once
        raise BackendError("; ".join([str(error), *beside.notes])) from error
    return [target for target in made if target.name in question.targets], beside


def _work(worker: _Worker, comparison: Comparison) -> Answer:
    found = _sitting(worker, comparison).judged(comparison.case)
    if has_device(worker.work.targets[0].backend):
        _give_back(worker)
    return _answer(worker, found)


def _give_back(worker: _Worker) -> None:
    """Freed memory of the device, where other judges may be too."""
    release(worker.work.targets[0].backend)
    for peer, _ in worker.open.values():
        if (own := optional(peer, "give_back")) is not None:
            try:
                call("give_back()", own)
            except PeerError as error:
                worker.beside.note(f"{peer.name}: {error}")


def _answer(worker: _Worker, judgements: Sequence[Judgement]) -> Answer:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    own = peak - (_borrowed() if worker.question.lent else 0)
    return Answer(judgements, worker.beside, f"{socket.gethostname()}:{os.getpid()}", own)


def _borrowed() -> int:
    """Bytes of the memory of another process that this one has looked at, which that one counts."""
    with suppress(OSError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["RssShmem"].split()[0]) * 1024
    return 0


def _last(worker: _Worker) -> Answer:
    """Close the peers that are open."""
    _close(worker)
    return _answer(worker, [])


def _close(worker: _Worker) -> None:
    for peer, _ in worker.open.values():
        closed(peer, worker.beside)
    worker.open.clear()


def _sitting(worker: _Worker, comparison: Comparison) -> Sitting:
    """The peer of the comparison on its checkpoint, open."""
    question, terms = worker.question, worker.question.terms
    if worker.at != (at := question.together(comparison)):
        _close(worker)
        worker.at = at
    if comparison.peer in worker.open:
        return worker.open[comparison.peer][1]
    (target,) = (target for target in worker.work.targets if target.name == comparison.target)
    given = question.peers[comparison.peer]
    like = other_type(given, question.peers.values())
    said = list[str]()
    with warnings_kept(PACKAGE, said):
        peer = _made(given, question.types[comparison.peer], target, lone=alone(question.peers.values()))
        other = _made(like, peer.dtype, target) if like else None
    worker.beside.note(*(note for note in said if note not in terms.notes))
    peer.name = comparison.peer
    give_time(peer, question.timeout)
    sitting = Sitting(
        peer,
        target,
        asked(worker.work.judged, target, peer, generating=terms.generating),
        Manner(terms.asked, len(terms.peers) == 1, terms.repeat, terms.required),
        worker.beside,
        other=other,
        shared=worker.shared,
    )
    worker.open[comparison.peer] = peer, sitting
    return sitting.opened()


def _made(given: str, dtype: str, target: Target, *, lone: bool = False) -> Peer:
    """The peer; what stands for one that is broken, where it is not the only one."""
    try:
        return create(given, target.backend)
    except PeerBroken as error:
        if lone:
            raise
        return broken(given, dtype, error)


def judged(
    question: Question,
    asked: Work,
    wanted: Sequence[Comparison],
    engine: Engine,
    ended: Callable[[Comparison | None, Answer], None],
    room: int | None = None,
) -> None:
    """Make the comparisons. `ended` is called as each ends: what it was told before an interruption is not lost.
    Each worker gives one answer more, for no comparison, when it has closed its last peer.

    `room` is what a device that they share has for comparisons, in bytes, and for peers' own weights where the others
    are lent; None for no such device.

    One that ends its process is tried once more, and then has an error: its peer could not be judged there. What comes
    from another machine is held against the work, as a shard's file is.
    """

    def lost(one: Comparison, how: str) -> Answer:
        return Answer([Judgement(one.peer, one.case, error=how, dtype=question.types[one.peer])], Beside(), lost=True)

    def checked(one: Comparison | None, raw: Any) -> Answer:
        if not isinstance(raw, list) or len(raw) != 3:
            raise PlainError("answer: expected a process, its memory and what was found")
        process, peak = decoded(tuple[str, int], raw[:2], "answer")
        found = raw[2]
        if one is None:
            return Answer([], records.beside_of(found, asked, "answer"), process, peak)
        record = records.read(found, asked, "answer")
        if record.comparison != one:
            raise PlainError(f"answer is of {record.comparison}, expected {one}")
        return Answer(record.judgements, record.beside, process, peak)

    task = Task(
        _start,
        (question,),
        _work,
        last=_last,
        alike=question.together,
        lost=lost,
        plain=_plain,
        checked=checked,
        takes=lambda one: bytes_on_device(*asked.of(one), cast(DType, question.types[one.peer])),
        holds=_holds(question, asked),
        room=room,
    )
    for one, answer in engine.done(task, wanted):
        ended(one, answer)


def _holds(question: Question, asked: Work) -> Callable[[Comparison], int]:
    """The bytes of a comparison's peer's own weights, where the others are lent."""

    @cache
    def of(name: str, dtype: str) -> int:
        return sum(bytes_of_weights(target, {dtype}) for target in asked.targets if target.name == name)

    return lambda one: of(one.target, question.types[one.peer]) if question.lent else 0


def _plain(one: Comparison | None, answer: Answer) -> Any:
    beside = encoded(answer.beside)
    found = beside if one is None else records.written(Record(one, answer.judgements, answer.beside))
    return [answer.process, answer.peak, found]
