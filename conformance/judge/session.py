"""Judges every peer on every checkpoint and case in this process, with one model in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from conformance.arrays import release
from conformance.cases.abilities import Required
from conformance.cases.case import Case
from conformance.judge.comparisons import Asks, Comparison, Plan, asks, comparisons
from conformance.judge.judgement import Judgement
from conformance.judge.sitting import Beside, Manner, Sitting, closed
from conformance.peers.protocol import Peer, optional
from conformance.progress import Reporter
from conformance.target import Target

Ended = Callable[[Comparison, Sequence[Judgement], Beside], None]
"""Called after each comparison, with what was found and what is known beside it."""


class Session:
    """Judges every peer on every case, and tells of each comparison as soon as it has ended.

    Args:
        targets: the checkpoints, in order.
        plan: the cases on them; none where the exact lane alone is wanted.
        exact: whether the exact lane is wanted; the others are those of `Manner`, and `alone` follows from the peers.
        generating: whether the generation lane was asked for by name.
        others: a peer's name → the same in another type. It runs first, so that what it leaves behind shows.
        only: the comparisons to make; None for all.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        plan: Plan,
        reporter: Reporter,
        *,
        exact: bool,
        asked: bool = False,
        generating: bool = False,
        repeat: bool = True,
        required: Required | None = None,
        others: Mapping[str, Peer] | None = None,
        only: Collection[Comparison] | None = None,
        ended: Ended = lambda *_: None,
    ) -> None:
        self._targets, self._plan, self._reporter = targets, plan, reporter
        self._exact, self._asked, self._repeat, self._required = exact, asked, repeat, required
        self._others, self._only, self._ended, self._generating = others or {}, only, ended, generating
        self.beside = Beside()

    def judge(self, peers: list[Peer]) -> None:
        wanted = [one for one in self._every(peers) if self._only is None or one in self._only]
        manner = Manner(self._asked, len(peers) == 1, self._repeat, self._required)
        self._reporter.start(len(wanted))
        for peer in peers:
            mine = [one for one in wanted if one.peer == peer.name]
            if mine or self._only is None:
                self._wholly(peer, mine, manner)
                release(self._targets[0].backend)

    def _every(self, peers: list[Peer]) -> list[Comparison]:
        def asks_of(peer: Peer) -> Asks:
            return lambda case: _asks(peer, case, self._generating)

        names = [target.name for target in self._targets]
        return comparisons(names, {peer.name: asks_of(peer) for peer in peers}, self._plan, exact=self._exact)

    def _wholly(self, peer: Peer, wanted: Sequence[Comparison], manner: Manner) -> None:
        """Judge one peer on every checkpoint, then close it."""
        for target in self._targets:
            here = [one for one in wanted if one.target == target.name]
            if not here and self._only is not None:
                continue
            cases = asked(self._plan, target, peer, generating=self._generating)
            other = self._others.get(peer.name)
            sitting = Sitting(peer, target, cases, manner, self.beside, self._reporter.say, other).opened()
            for one in here:
                judgements = sitting.judged(one.case)
                self._reporter.step()
                self._ended(one, judgements, self.beside)
        closed(peer, self.beside)


def asked(plan: Plan, target: Target, peer: Peer, *, generating: bool) -> list[Case]:
    """The cases of a checkpoint that the peer is asked for."""
    return [case for of, case in plan if of is target and _asks(peer, case, generating)]


def _asks(peer: Peer, case: Case, generating: bool) -> bool:
    able = {"generates": generating or optional(peer, "generate") is not None}
    return asks(peer.dtype, case, **able, prepares=optional(peer, "preprocess") is not None)
