"""One peer on one checkpoint: opened once, then judged on one case after another, in whatever order they come."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np

from conformance.activations import Dump
from conformance.arrays import release
from conformance.cases.abilities import Required, unmet, why_skipped
from conformance.cases.case import Case
from conformance.errors import CheckpointError, PeerUnavailable
from conformance.judge.along import Along
from conformance.judge.comparisons import EXACT, SPOILT
from conformance.judge.exact.lane import examine_exact
from conformance.judge.exact.probes import probes
from conformance.judge.generated import judge_generated
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.judge.pictured import judge_pictures, legal_note
from conformance.measure.finding import Finding
from conformance.peers.guard import PeerError, call, line, said, warnings_kept
from conformance.peers.protocol import Peer, lacks, optional, scheme_of, wide
from conformance.target import Target
from t5g2ref.backend import BackendError
from t5g2ref.dtypes import DType
from t5g2ref.notes import noted
from t5g2ref.on_demand import OnDemand

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Manner:
    """How every peer is judged.

    Args:
        asked: whether the exact lane was named; see `commands.request.Request`.
        alone: whether there is one peer: where it is unavailable, there is nothing to judge.
        repeat: whether every case is run twice; see `conformance.judge.steady`.
        required: what the verdict has to cover; None for every case.
    """

    asked: bool = False
    alone: bool = False
    repeat: bool = True
    required: Required | None = None


@dataclass
class Beside:
    """What comes beside the judgements: a peer's versions, what it calls itself, and notes."""

    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, *notes: str) -> None:
        """Add notes, each once."""
        self.notes += [note for note in dict.fromkeys(notes) if note not in self.notes]

    def copied(self) -> Beside:
        """What is known now."""
        return Beside(dict(self.versions), dict(self.called), list(self.notes))

    def unlike(self, other: Beside) -> str:
        """In what a peer was another one there, in words: "torch 2.13.0, not 2.12.1"; "" for nothing."""
        for mine, theirs in ((self.versions, other.versions), (self.called, other.called)):
            for peer in (name for name in mine if name in theirs and mine[name] != theirs[name]):
                return f"{peer} in {_said(mine[peer], theirs[peer])}, not {_said(theirs[peer], mine[peer])}"
        return ""

    def add(self, other: Beside) -> None:
        self.versions |= other.versions
        self.called |= other.called
        self.note(*other.notes)


def _said(one: dict[str, str] | str, other: dict[str, str] | str) -> str:
    """What is not the same in the other."""
    if isinstance(one, str) or isinstance(other, str):
        return str(one)
    return ", ".join(f"{name} {one[name]}" for name in one if other.get(name) != one[name]) or "no such version"


class Sitting:
    """One peer on one checkpoint. If it cannot load that, each case has this error.

    Args:
        cases: all that its type is asked for there, also those that others judge.
        other: the same peer in another type, for which see `opened`; None where there is none.
        shared: with other sittings that are judged on the same cases in turns.
    """

    def __init__(
        self,
        peer: Peer,
        target: Target,
        cases: Sequence[Case],
        manner: Manner,
        beside: Beside,
        progress: Progress = lambda _: None,
        other: Peer | None = None,
        shared: Along | None = None,
    ) -> None:
        self._peer, self._target, self._manner, self._beside = peer, target, manner, beside
        self._cases, self._progress, self._other = {case.name: case for case in cases}, progress, other
        self._shared = shared
        self._weights, self._spoilt, self._refused = list[int](), False, ""

    def opened(self) -> Sitting:
        """Open the peer. The other one runs first, so that what it leaves behind shows.

        PeerUnavailable or CheckpointError where the peer is the only one; else that is the peer's error.
        """
        with warnings_kept(self._peer.name, self._beside.notes):
            self._opened()
        return self

    def _opened(self) -> None:
        self._weights = fingerprint(self._target, self._peer)
        if self._other is not None and self._cases:
            self._guarded("", partial(self._leave_behind, self._other, next(iter(self._cases.values()))))
        failed = self._guarded("", self._open)
        self._refused = failed.error if failed is not None else ""
        if not optional(self._peer, "probed") and not self._manner.asked:
            self._beside.note(f"{self._peer.name}: {UNPROBED}")

    def judged(self, name: str) -> list[Judgement]:
        """What there is to say of one case, or of the exact lane: nothing where it is not required."""
        said = list[str]()
        with warnings_kept(self._peer.name, self._beside.notes), noted(said):
            found = self._exactly() if name == EXACT else self._on(self._cases[name])
        self._beside.note(*(f"case {name} of {self._target.name}: {note}" for note in said))
        if not self._spoilt and fingerprint(self._target, self._peer) != self._weights:
            self._spoilt = True
            finding = Finding("weights", 0, "exact", detail=SPOILT)
            found.append(Judgement(self._peer.name, EXACT, exact=[finding], dtype=self._peer.dtype))
        return found

    def _on(self, case: Case) -> list[Judgement]:
        """The peer on a case; nothing where that is not required. Where none is, its first case says so."""
        required = [name for name, of in self._cases.items() if self._is_required(of)]
        if case.name in required:
            return [self._one(case.name, partial(self._compared, case))]
        if not required and case.name == next(iter(self._cases)):
            why = "nothing that is required is a case that it can do"
            return [Judgement(self._peer.name, EXACT, skipped=why, dtype=self._peer.dtype)]
        return []

    def _is_required(self, case: Case) -> bool:
        required = self._manner.required
        return bool(self._refused) or required is None or required.covers(case, lacks(self._peer))

    def _compared(self, case: Case) -> Judgement:
        if why := why_skipped(case, lacks(self._peer)):
            return Judgement(self._peer.name, case.name, skipped=why, dtype=self._peer.dtype)
        if case.pictures:
            found = judge_pictures(self._peer, self._target, case, self._progress, repeat=self._manner.repeat)
            self._beside.note(*filter(None, [legal_note(found)]))
            return found
        if case.picks and not optional(self._peer, "picks"):
            return Judgement(self._peer.name, case.name, skipped=UNPICKED, dtype=self._peer.dtype)
        if case.prompts:
            return judge_generated(self._peer, self._target, case, self._progress, repeat=self._manner.repeat)
        return judge(self._peer, self._target, case, self._progress, repeat=self._manner.repeat, shared=self._shared)

    def _exactly(self) -> list[Judgement]:
        """The exact lane, without the probes that are not required. What nobody asked for by name may be left out."""
        peer, target = self._peer, self._target
        if not optional(peer, "probed"):
            skipped = [Judgement(peer.name, EXACT, skipped=UNPROBED, dtype=peer.dtype)]
            return skipped if self._manner.asked else []
        if self._refused:
            return [self._one(EXACT, partial(_examined, peer, target, self._progress, ()))]
        quantised, every = bool(optional(peer, "quantised")), [probe.case for probe in probes(target.config)]
        weightless = quantised or optional(peer, "weights") is None
        left = [case.name for case in every if not self._refused and not self._probed(case)]
        if quantised:
            self._beside.note(f"{peer.name} is quantised: its weights were not compared bit for bit")
        elif weightless:
            self._beside.note(f"{peer.name} shows no weights: what its loader made of the checkpoint was not judged")
        if left:
            self._beside.note(f"{peer.name}: not probed: {', '.join(left)}")
        if weightless and len(left) == len(every) and not self._manner.asked:
            return []
        return [self._one(EXACT, partial(_examined, peer, target, self._progress, left))]

    def _probed(self, case: Case) -> bool:
        """Whether a probe is run: every one, or where cases are required, those that fit."""
        required = self._manner.required
        if required is None:
            return True
        return not unmet(case, lacks(self._peer)) and (required.names is not None or required.covers(case, ()))

    def _open(self) -> None:
        peer, known = self._peer, (BackendError,)
        alone = (BackendError, PeerUnavailable, CheckpointError)
        call("open()", peer.open, self._target, passing=alone if self._manner.alone else known)
        if self._target.streamed and scheme_of(peer) is not None:
            raise PeerError("it is quantised, and its controls need all weights in memory: give --no-stream")
        self._beside.versions[peer.name] = _versions(peer)
        lacks(peer)
        called = optional(peer, "called")
        if isinstance(called, str) and called:
            self._beside.called[peer.name] = line(called)
        self._beside.note(*(line(note) for note in optional(peer, "notes")))
        if wide(peer) is not None:
            where = ", ".join(list(optional(peer, "types"))[:3])
            self._beside.note(
                f"{peer.name} runs in {peer.dtype} and declares float32 at {line(where)}: judged in float32 there"
            )

    def _leave_behind(self, other: Peer, case: Case) -> None:
        """Run a case in another type. What goes wrong there is said in that peer's own turn."""
        call("", other.open, self._target)
        with Dump(self._target.backend, unseen=True) as unseen:
            call("", other.run, case.given(other.dtype).copied(), unseen)
        call("", other.close)

    def _one(self, name: str, judging: Callable[[], Judgement]) -> Judgement:
        failed = Judgement(self._peer.name, name, error=self._refused, dtype=self._peer.dtype)
        return failed if self._refused else self._guarded(name, judging) or failed

    def _guarded(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; after a peer's or a backend's error, a judgement with it, and the memory released."""
        try:
            return work()
        except (BackendError, PeerError) as error:
            failed = Judgement(self._peer.name, name, error=str(error), dtype=self._peer.dtype)
        gc.collect()  # the error's frames hold device arrays, which do not trigger Python's own collection
        release(self._target.backend)
        return failed


UNPICKED = "the peer does not say that it can show picked tokens of a long row: `picks` in peers/protocol.py"
UNPROBED = "what was written down can only be read: neither its weights nor masks by probing were judged"


def closed(peer: Peer, beside: Beside) -> None:
    """Close a peer. What it raises then costs no result."""
    with warnings_kept(peer.name, beside.notes):
        try:
            call("close()", peer.close)
        except PeerError as error:
            beside.note(f"{peer.name}: {error}")


def _examined(peer: Peer, target: Target, progress: Progress, left: Sequence[str]) -> Judgement:
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
    return Judgement(peer.name, EXACT, error=error, exact=findings, seconds=seconds, dtype=peer.dtype)


def fingerprint(target: Target, peer: Peer) -> list[int]:
    """A sum of the bits of each tensor that truth and peer may share in memory. What is on demand is read again."""
    xp = target.backend.xp
    with target.backend.scope():
        rounded = target.rounded(cast(DType, peer.dtype))
        weights = (rounded.settled() if isinstance(rounded, OnDemand) else rounded).values()
        words = [w.reshape(-1).view(np.uint32 if w.dtype.itemsize == 4 else np.uint16) for w in weights]
        sums = xp.stack([xp.sum(word, dtype=np.uint64) for word in words])
        return [int(total) for total in target.backend.host(sums)]


def _versions(peer: Peer) -> dict[str, str]:
    """Names and versions as the peer tells them. Raises PeerError where they are no text."""
    found = call("versions()", peer.versions)
    if not isinstance(found, dict) or not all(isinstance(word, str) for pair in found.items() for word in pair):
        raise PeerError(f"versions() gave {line(repr(found))}, expected names and versions as text")
    return {line(name): line(version) for name, version in found.items()}
