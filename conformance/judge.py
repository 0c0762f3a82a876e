"""The judgement of one peer on one case: both anchors, every tap, and who is to blame.

Local: after each tap is judged, all of our runs go on with the peer's own value, so a fault lights the row where it
happens and no other. Cumulative: everyone starts from the ids; judged along the residual stream, where an error that
no single operation owns up to would show.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from conformance.cases import Case
from conformance.compare import Finding, examine
from conformance.distance import distances
from conformance.dump import Dump
from conformance.lockstep import walk
from conformance.oracle import models, program
from conformance.peers import Peer, Target
from conformance.placement import has_device
from t5g2ref import taps
from t5g2ref.config import Config
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import DType
from t5g2ref.taps import Tap

# How far apart two legal float32 sums can be: one running sum of n terms has a random-walk error of about √n · u, a
# blocked product that keeps 64 partial sums (16 lanes × 4 registers of AVX-512) has √(n / 64) · u, an eighth of it.
# The controls take both orders, so a peer should stay near 1; what remains is chance, where a token's error hangs on
# few roundings (the scale of a norm). A defect is at 100 and above. Measured figures: README.
LIMITS = {"local": 8.0, "cumulative": 8.0}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Judgement:
    """One peer on one case.

    Args:
        local, cumulative: findings in the order of the computation.
        error: why the peer could not be judged (it raised); then there are no findings.
        seconds: peer and reference, for the report.
    """

    peer: str
    case: str
    local: list[Finding] = field(default_factory=list)
    cumulative: list[Finding] = field(default_factory=list)
    error: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def culprit(self) -> Finding | None:
        """The first failing local tap; the first failing cumulative one when every operation is right by itself."""
        return next((f for f in (*self.local, *self.cumulative) if not f.passed), None)

    @property
    def deviates(self) -> bool:
        """A fault was found. What is merely missing after the peer raised is no fault of its own."""
        culprit = self.culprit
        return culprit is not None and not (self.error and culprit.status == "missing")

    @property
    def passed(self) -> bool:
        return not self.error and bool(self.local) and self.culprit is None

    def worst(self, anchor: str = "local") -> Finding | None:
        """The finding with the largest ratio that was judged; a fault without a ratio counts as the largest."""
        found: list[Finding] = getattr(self, anchor)
        return max(found, key=lambda f: (not f.passed, np.nan_to_num(f.judged, nan=np.inf)), default=None)


def judge(peer: Peer, target: Target, case: Case, progress: Progress = lambda _: None) -> Judgement:
    """Run `case` on an opened peer and on the reference, and compare, on the target's backend. A peer that raises is
    reported, not passed."""
    case, dtype = case.given(peer.dtype), cast(DType, peer.dtype)
    with Dump(target.backend) as dump:
        began = time.perf_counter()
        progress(f"{case.name}: {peer.name}")
        raised = ""
        try:
            peer.run(case, dump)
        except Exception as error:  # whatever a foreign program raises is a finding, not our crash
            raised = f"{type(error).__name__}: {error}"
        if raised and not dump.calls:
            return Judgement(peer.name, case.name, error=raised)
        ran = time.perf_counter()
        ours = models(target.config, target.rounded(dtype), case, dtype, target.backend)
        progress(f"{case.name}: local anchor of {peer.name}")
        local = _Comparison(target, case, dump, dtype, local=True).findings(ours)
        progress(f"{case.name}: cumulative anchor of {peer.name}")
        whole = _Comparison(target, case, dump, dtype, local=False).findings(ours)
    seconds = {"peer": ran - began, "reference": time.perf_counter() - ran}
    return Judgement(peer.name, case.name, local, whole, raised, seconds)


class _Comparison:
    """Meets truth and controls at each tap and compares the peer's value there."""

    def __init__(self, target: Target, case: Case, dump: Dump, dtype: str, *, local: bool) -> None:
        self._dump, self._dtype, self._local = dump, dtype, local
        self._case, self._backend = case, target.backend
        self._distances = distances(target.backend)
        self._plan = plan_of(target.config, case)
        self._found: dict[tuple[int, str], Finding] = {}
        self._taps = {(call, tap.name): tap for call, tap in self._plan}

    def findings(self, ours: list[T5Gemma2]) -> list[Finding]:
        turns = has_device(self._backend)
        walk(ours, program(self._case), self._meet, where=self._judged, scope=self._backend.scope, turns=turns)
        judged = [(call, tap) for call, tap in self._plan if self._local or tap.spine]
        unmet = [(call, tap.name) for call, tap in judged if (call, tap.name) not in self._found]
        if unmet or not judged:
            raise RuntimeError(f"the reference never came by {len(unmet)} declared taps, first {unmet[:1]}")
        return [self._found[call, tap.name] for call, tap in judged]

    def _judged(self, call: int, name: str) -> bool:
        return self._local or self._taps[call, name].spine

    def _meet(self, call: int, name: str, values: list[Any]) -> list[Any]:
        tap = self._taps[call, name]
        given = self._dump.get(call, name)
        truth, *controls = values
        anchor, gate = ("local", "worst") if self._local else ("cumulative", "median")
        finding = examine(
            tap,
            call,
            given,
            truth,
            controls,
            validity(self._case, call, tap, truth.shape),
            dtype=self._dtype,
            limit=LIMITS[anchor],
            gate=gate,  # type: ignore[arg-type]
            distances=self._distances,
        )
        self._found[call, name] = finding
        usable = self._local and finding.status in ("pass", "values") and not tap.exact
        return [self._backend.xp.asarray(given, dtype=value.dtype) for value in values] if usable else values


def validity(case: Case, call: int, tap: Tap, shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
    """bool over the tap's token axes, False on the padding that the case laid down; None where nothing is padded."""
    run, (first, last) = case.calls[call]
    if tap.rows == "all":
        return None
    if tap.rows == "encoder":
        return run.encoder_valid
    held = run.decoder_valid[:, :last]
    if tap.rows == "own":
        return held[:, last - shape[2] :]
    keep = run.logits_to_keep if tap.rows == "logits" else None
    return held[:, first if keep is None else max(first, last - keep) :]


def plan_of(config: Config, case: Case) -> list[tuple[int, Tap]]:
    """Every (call, tap) that a peer has to show in this case, in order."""
    plan: list[tuple[int, Tap]] = []
    for call, (run, (first, _)) in enumerate(case.calls):
        images = run.pixel_values is not None
        table = taps.table(config, images=images, task=case.task, loss=run.labels is not None)
        plan += [(call, tap) for tap in table if first == 0 or not tap.first_call]
    return plan
