"""Judges in several processes, one comparison after another, which are told as they end.

A worker reads the checkpoint and makes the peer itself, by the name that it was asked for. It keeps a peer open as long
as the next comparison is of the same one on the same checkpoint. Small peers of one type are open side by side, and
take turns at each case.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from conformance.checkpoints import BUNDLED, resolve
from conformance.judge.along import Along
from conformance.judge.comparisons import Comparison
from conformance.judge.judgement import Judgement
from conformance.judge.session import asked
from conformance.judge.sitting import Beside, Manner, Sitting, closed
from conformance.peers.find import BUILT_IN, create, other_type
from conformance.peers.guard import PACKAGE, warnings_kept
from conformance.peers.protocol import Peer, give_time
from conformance.report.terms import Terms, Work, work
from conformance.sweep.pool import done
from t5g2ref.backend import find


@dataclass(frozen=True)
class Question:
    """What a worker has to know; all else is in the comparison that it gets.

    Args:
        peers: a peer's name → what `--peer` has to be given for it.
        targets: names of the checkpoints that are judged on, of those that `terms.ckpt` stands for.
        timeout: seconds for each answer of a process.
        stream: whether the one who asks streams the weights; then all do.
    """

    terms: Terms
    peers: Mapping[str, str]
    targets: tuple[str, ...]
    backend: str
    timeout: float
    stream: bool | None = None

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
        process, peak: its id, and the most memory that it had, in bytes.
        lost: whether this stands for an answer that never came.
    """

    judgements: Sequence[Judgement]
    beside: Beside
    process: int = 0
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
    terms = question.terms
    how: dict[str, Any] = {"synthetic": terms.synthetic, "calm": terms.calm, "stream": question.stream}
    how["layers"] = terms.layers
    made = resolve(terms.ckpt, **how, backend=find(question.backend))
    targets = [target for target in made if target.name in question.targets]
    return _Worker(question, work(terms, targets), shared=Along() if question.shares else None)


def _work(worker: _Worker, comparison: Comparison) -> Answer:
    return _answer(worker, _sitting(worker, comparison).judged(comparison.case))


def _answer(worker: _Worker, judgements: Sequence[Judgement]) -> Answer:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Answer(judgements, worker.beside, os.getpid(), peak)


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
        peer, other = create(given, target.backend), create(like, target.backend) if like else None
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


def judged(
    question: Question,
    wanted: Sequence[Comparison],
    processes: int,
    ended: Callable[[Comparison | None, Answer], None],
) -> None:
    """Make the comparisons. `ended` is called as each ends: what it was told before an interruption is not lost.
    Each worker gives one answer more, for no comparison, when it has closed its last peer.

    One that ends its process is tried once more, and then has an error: its peer could not be judged there.
    """

    def lost(one: Comparison, how: str) -> Answer:
        failed = Judgement(
            one.peer, one.case, error=f"{how}, and so was the next that tried", dtype=question.types[one.peer]
        )
        return Answer([failed], Beside(), lost=True)

    for one, answer in done(
        _start, (question,), _work, wanted, processes, alike=question.together, lost=lost, last=_last
    ):
        ended(one, answer)
