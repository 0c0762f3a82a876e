"""Judges every peer on every checkpoint and case, with one model in memory at a time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from conformance.activations import Dump
from conformance.arrays import release
from conformance.cases.abilities import Required, unmet, why_skipped
from conformance.cases.case import Case
from conformance.errors import CheckpointError, PeerUnavailable
from conformance.judge.exact.lane import examine_exact
from conformance.judge.exact.probes import probes
from conformance.judge.generated import judge_generated
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.measure.finding import Finding
from conformance.peers.guard import PeerError, call, line, said, warnings_kept
from conformance.peers.protocol import Peer, lacks, optional, wide
from conformance.progress import Reporter
from conformance.target import Target
from t5g2ref.backend import BackendError
from t5g2ref.dtypes import DType

Found = list[tuple[str, Judgement]]
Plan = list[tuple[Target, Case]]


class Session:
    """Judges every peer on every case. Each judgement goes into `found` as soon as it is made.

    Args:
        targets: the checkpoints, in order.
        plan: the cases on them; none where the exact lane alone is wanted.
        exact, asked: see `commands.request.Request`.
        generating: whether the generation lane was asked for by name.
        alone: whether the peer is the only one of the whole run; by default, of this session.
        repeat: whether every case is run twice; see `conformance.judge.steady`.
        required: what the verdict has to cover; None for every case.
        others: a peer's name → the same in another type. It runs first, so that what it leaves behind shows.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        plan: Plan,
        found: Found,
        reporter: Reporter,
        *,
        exact: bool,
        asked: bool = False,
        generating: bool = False,
        alone: bool | None = None,
        repeat: bool = True,
        required: Required | None = None,
        others: Mapping[str, Peer] | None = None,
    ) -> None:
        self._targets, self._plan, self._found, self._reporter = targets, plan, found, reporter
        self._exact, self._asked, self._alone, self._generating = exact, asked, alone, generating
        self._repeat, self._required, self._others = repeat, required, others or {}
        self.versions: dict[str, dict[str, str]] = {}
        self.called: dict[str, str] = {}
        self.notes: list[str] = []

    def total(self, peers: list[Peer]) -> int:
        """How many judgements there will be."""
        cases = sum(self._asks(peer, case) for peer in peers for _, case in self._plan)
        return cases + len(peers) * len(self._targets) * self._exact

    def _asks(self, peer: Peer, case: Case) -> bool:
        """Whether a peer is judged on a case. One without a `generate` is asked to generate only by name."""
        able = not case.prompts or self._generating or optional(peer, "generate") is not None
        return able and case.asks(peer.dtype)

    def judge(self, peers: list[Peer]) -> None:
        self._reporter.start(self.total(peers))
        self._alone = len(peers) == 1 if self._alone is None else self._alone
        for peer in peers:
            with warnings_kept(peer.name, self.notes):
                self._wholly(peer)
            release(self._targets[0].backend)

    def _wholly(self, peer: Peer) -> None:
        """Judge one peer on every checkpoint, then close it."""
        for target in self._targets:
            self._on(peer, target)
        try:
            call("close()", peer.close)
        except PeerError as error:
            self.notes.append(f"{peer.name}: {error}")

    def _on(self, peer: Peer, target: Target) -> None:
        """Judge one peer on one checkpoint. If it cannot load that, each case has this error and the run goes on."""
        before = fingerprint(target, peer)
        if peer.name in self._others:
            self._leave_behind(self._others[peer.name], target)
        opened = self._guarded(peer, target, "", partial(self._open, peer, target))
        refused = opened.error if opened is not None else ""
        if not optional(peer, "probed"):
            self._unprobed(peer, target)
        elif self._exact:
            self._exactly(peer, target, refused)
        self._cases(peer, target, refused)
        if fingerprint(target, peer) != before:
            detail = "the peer changed the weights that it was given: nothing judged here counts; let it copy them"
            spoiled = Finding("weights", 0, "exact", detail=detail)
            self._found.append((target.name, Judgement(peer.name, "exact", exact=[spoiled], dtype=peer.dtype)))

    def _cases(self, peer: Peer, target: Target, refused: str) -> None:
        """Judge the peer on the cases of a checkpoint: all that its type is asked for, or those that are required."""
        asked = [case for of, case in self._plan if of is target and self._asks(peer, case)]
        cases = [c for c in asked if refused or self._required is None or self._required.covers(c, lacks(peer))]
        for case in cases:
            self._one(peer, target, case.name, refused, partial(self._judged, peer, target, case))
        for _ in range(len(asked) - len(cases)):
            self._reporter.step()
        if asked and not cases:
            why = "nothing that is required is a case that it can do"
            self._found.append((target.name, Judgement(peer.name, "exact", skipped=why, dtype=peer.dtype)))

    def _exactly(self, peer: Peer, target: Target, refused: str) -> None:
        """The exact lane, without the probes that are not required. What nobody asked for by name may be left out."""
        quantised, every = bool(optional(peer, "quantised")), [probe.case for probe in probes(target.config)]
        weightless = quantised or optional(peer, "weights") is None
        left = [case.name for case in every if not refused and not self._probed(case, peer)]
        if quantised:
            self.notes.append(f"{peer.name} is quantised: its weights were not compared bit for bit")
        elif weightless:
            self.notes.append(f"{peer.name} shows no weights: what its loader made of the checkpoint was not judged")
        if left:
            self.notes.append(f"{peer.name}: not probed: {', '.join(left)}")
        if weightless and len(left) == len(every) and not self._asked:
            self._reporter.step()
            return
        lane = partial(_exactly, peer, target, self._reporter.say, left)
        self._one(peer, target, "exact", refused, lane)

    def _probed(self, case: Case, peer: Peer) -> bool:
        """Whether a probe is run: every one, or where cases are required, those that fit."""
        if self._required is None:
            return True
        return not unmet(case, lacks(peer)) and (self._required.names is not None or self._required.covers(case, ()))

    def _open(self, peer: Peer, target: Target) -> None:
        """Open the peer. PeerUnavailable ends the run where it is the only peer; else it is that peer's error."""
        known = (BackendError,) if not self._alone else (BackendError, PeerUnavailable, CheckpointError)
        call("open()", peer.open, target, passing=known)
        self.versions[peer.name] = _versions(peer)
        lacks(peer)
        called = optional(peer, "called")
        if isinstance(called, str) and called:
            self.called[peer.name] = line(called)
        said = [line(note) for note in optional(peer, "notes")]
        if wide(peer) is not None:
            where = ", ".join(list(optional(peer, "types"))[:3])
            said.append(
                f"{peer.name} runs in {peer.dtype} and declares float32 at {line(where)}: judged in float32 there"
            )
        self.notes += [note for note in said if note not in self.notes]

    def _judged(self, peer: Peer, target: Target, case: Case) -> Judgement:
        if why := why_skipped(case, lacks(peer)):
            return Judgement(peer.name, case.name, skipped=why, dtype=peer.dtype)
        if case.prompts:
            return judge_generated(peer, target, case, self._reporter.say, repeat=self._repeat)
        return judge(peer, target, case, self._reporter.say, repeat=self._repeat)

    def _leave_behind(self, other: Peer, target: Target) -> None:
        """Run the first case in another type. What goes wrong there is said in that peer's own turn."""
        case = next((c for of, c in self._plan if of is target), None)

        def once() -> None:
            assert case is not None
            call("", other.open, target)
            with Dump(target.backend, unseen=True) as unseen:
                call("", other.run, case.given(other.dtype).copied(), unseen)
            call("", other.close)

        if case is not None:
            self._guarded(other, target, "", once)

    def _unprobed(self, peer: Peer, target: Target) -> None:
        """Leave the exact lane of a dump out: with a note, or as a skip where it was asked for."""
        why = "what was written down can only be read: neither its weights nor masks by probing were judged"
        if self._asked:
            self._found.append((target.name, Judgement(peer.name, "exact", skipped=why, dtype=peer.dtype)))
        elif (note := f"{peer.name}: {why}") not in self.notes:
            self.notes.append(note)
        if self._exact:
            self._reporter.step()

    def _one(self, peer: Peer, target: Target, name: str, refused: str, judging: Callable[[], Judgement]) -> None:
        failed = Judgement(peer.name, name, error=refused, dtype=peer.dtype)
        result = failed if refused else self._guarded(peer, target, name, judging)
        self._found.append((target.name, result or failed))
        self._reporter.step()

    def _guarded(self, peer: Peer, target: Target, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; after a peer's or a backend's error, a judgement with it, and the memory released."""
        try:
            return work()
        except (BackendError, PeerError) as error:
            failed = Judgement(peer.name, name, error=str(error), dtype=peer.dtype)
        gc.collect()  # the error's frames hold device arrays, which do not trigger Python's own collection
        release(target.backend)
        return failed


def _exactly(peer: Peer, target: Target, progress: Callable[[str], None], left: Sequence[str]) -> Judgement:
    """The exact lane: weights after the peer's loader, ids and embedding rows, masks by probing but for `left`."""
    began = time.perf_counter()
    progress(f"exact lane: {peer.name}")
    try:
        findings, error = examine_exact(peer, target, cast(DType, peer.dtype), progress, without=left), ""
    except (KeyboardInterrupt, BackendError):
        raise
    except BaseException as raised:  # whatever a foreign program raises is a finding, not our crash
        findings, error = [], said(raised)
    if not error:  # a probe that raised or was skipped proves nothing against the peer
        error = next((f.detail for f in findings if f.status == "missing" and not f.tap.startswith("weights")), "")
    seconds = {"exact": time.perf_counter() - began}
    return Judgement(peer.name, "exact", error=error, exact=findings, seconds=seconds, dtype=peer.dtype)


def fingerprint(target: Target, peer: Peer) -> list[int]:
    """A sum of the bits of each tensor that truth and peer may share in memory."""
    xp = target.backend.xp
    with target.backend.scope():
        weights = target.rounded(cast(DType, peer.dtype)).values()
        words = [w.reshape(-1).view(np.uint32 if w.dtype.itemsize == 4 else np.uint16) for w in weights]
        sums = xp.stack([xp.sum(word, dtype=np.uint64) for word in words])
        return [int(total) for total in target.backend.host(sums)]


def _versions(peer: Peer) -> dict[str, str]:
    """Names and versions as the peer tells them. Raises PeerError where they are no text."""
    found = call("versions()", peer.versions)
    if not isinstance(found, dict) or not all(isinstance(word, str) for pair in found.items() for word in pair):
        raise PeerError(f"versions() gave {line(repr(found))}, expected names and versions as text")
    return {line(name): line(version) for name, version in found.items()}
