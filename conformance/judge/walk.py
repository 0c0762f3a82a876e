"""One peer's dump against the reference, tap by tap, as the reference walks through the case.

The local walk gives all of our runs the peer's own value after every tap that it shows; the cumulative one leaves them
alone. In float32 a tap is judged on the spot (`compare.py`); in a half-precision lane it is measured, beside its
worst-case bound and oracles with a defect, and the case is judged when it has been walked (`half.py`, `patterns.py`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.arrays import has_device
from conformance.cases.case import Case
from conformance.cases.plan import Shown, kind_of, plan_of, validity
from conformance.measure import half
from conformance.measure.distance import distances
from conformance.measure.finding import Finding
from conformance.measure.half import Limit
from conformance.measure.logits import LogitTest
from conformance.measure.match import Signature
from conformance.measure.ratio import FEW, Errors, errors_of, typical
from conformance.measure.ratio import values as judged_values
from conformance.oracle.run_case import program
from conformance.oracle.side_by_side import walk
from conformance.target import Target
from t5g2ref.dtypes import HALF, DType
from t5g2ref.model import T5Gemma2
from t5g2ref.ops import softcap
from t5g2ref.taps import Tap

# How far apart two legal float32 sums can be: one running sum of n terms has a random-walk error of about √n · u, a
# blocked product that keeps 64 partial sums (16 lanes × 4 registers of AVX-512) has √(n / 64) · u, an eighth of it.
# The controls take both orders, so a peer should stay near 1. What remains is chance, where a token's error hangs on
# few roundings (the scale of a norm), and that the running control takes blocks of terms where the result is large
# (`backend.RUNNING_WORK`): a peer that adds one by one was seen at 5 there. A defect is at 100 and above. Measured
# figures: README. In a half-precision lane every sum is in float32 and rounded once, so legal runs are close at every
# tap, and no local limit is above 2 (`half.py`); along a chain of layers their roundings part, so the cumulative limit
# is the same in every lane.
LIMITS = {"local": 8.0, "cumulative": 8.0, "half": half.MOST}

PICTURES = 4  # of failing masks that a judgement keeps
SIDE = 64  # rows and columns of such a picture at most


class Culprit(Exception):
    """The walk was to stop at the first failing tap, and this is it."""


@dataclass
class Found:
    """What one walk found.

    Args:
        findings: in the order of the computation.
        limits, signatures, unclear: of a half-precision lane; see `half.judged` and `patterns.signatures`.
        logits: figures of the language model's logits; see `LogitTest.figures`.
        masks: the first failing masks as rows of text, expected and found.
    """

    findings: list[Finding]
    limits: list[Limit] = field(default_factory=list)
    signatures: list[Signature] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    logits: dict[str, float] = field(default_factory=dict)
    masks: list[dict[str, Any]] = field(default_factory=list)


class Comparison:
    """Meets truth and controls at each tap and compares the peer's value there.

    Args:
        shown: of a tap's name: whether the peer says that it shows it; the others are not judged.
        until_culprit: stop at the first tap that fails.
    """

    def __init__(
        self,
        target: Target,
        case: Case,
        dump: Dump,
        dtype: DType,
        *,
        local: bool,
        shown: Shown = lambda _: True,
        until_culprit: bool = False,
    ) -> None:
        self._dump, self._dtype, self._local, self._until = dump, dtype, local, until_culprit
        self._case, self._backend, self._cap = case, target.backend, target.config.decoder.final_logit_softcapping
        self._distances = distances(target.backend)
        self._plan = [
            (call, tap) for call, tap in plan_of(target.config, case) if shown(tap.name) and (local or tap.spine)
        ]
        self._taps = {(call, tap.name): tap for call, tap in self._plan}
        self._found: dict[tuple[int, str], Finding] = {}
        self._pending: list[tuple[Tap, int, Errors]] = []
        self._logits, self._masks, self._controls = LogitTest(), list[dict[str, Any]](), 0
        # A mask is compared and never handed on: without it every other operation still has the peer's own input.
        self._partial = not all(shown(tap.name) for _, tap in plan_of(target.config, case) if not tap.exact)
        self._before_head: list[Any] | None = None
        self._unclear: dict[str, None] = {}

    def walk(self, ours: list[T5Gemma2]) -> Found:
        """Walk the reference's models, the truth first, and say what was found."""
        self._controls, self._numerics = len(ours) - 1, [model.nx for model in ours]
        try:
            walk(
                self._members(ours),
                program(self._case),
                self._meet,
                where=lambda call, name: (call, name) in self._taps,
                scope=self._backend.scope,
                turns=has_device(self._backend),
            )
        except Culprit:
            met = [self._found[call, tap.name] for call, tap in self._plan if (call, tap.name) in self._found]
            return Found(met, masks=self._masks)
        return self._ended()

    def _members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        return ours

    def _ended(self) -> Found:
        unmet = [(call, tap.name) for call, tap in self._plan if (call, tap.name) not in self._found]
        if unmet:
            raise RuntimeError(f"the reference never came by {len(unmet)} declared taps, first {unmet[:1]}")
        self._pool()
        figures = self._logits.figures()
        self._judge_logits(figures)
        met = [self._found[call, tap.name] for call, tap in self._plan]
        return Found(met, unclear=list(self._unclear), logits=figures, masks=self._masks)

    def _judge_logits(self, figures: dict[str, float]) -> None:
        """What the logits are as a distribution fails them too, at their last call, if nothing else did."""
        limit = LIMITS["half" if self._dtype in HALF else "local"] ** 2  # the divergence is quadratic in the error
        place = max((p for p in self._found if p[1] == "logits"), default=None)
        if not figures or place is None or not self._found[place].passed:
            return
        if not figures["kl_ratio"] <= limit:
            detail = f"KL(truth ‖ peer) is {figures['kl_ratio']:.3g} times the control's"
            self._found[place] = replace(
                self._found[place], status="values", judged=figures["kl_ratio"], limit=limit, detail=detail
            )
        elif figures["wrong"] > 0:
            detail = f"another first choice at {figures['wrong']:.0f} positions where the margin certifies the truth's"
            self._found[place] = replace(self._found[place], status="exact", detail=detail)

    def _meet(self, call: int, name: str, values: list[Any]) -> list[Any]:
        tap = self._taps[call, name]
        given = self._dump.get(call, name)
        valid = validity(self._case, call, tap, values[0].shape)
        finding = self._examined(tap, call, given, values, valid)
        self._found[call, name] = finding
        if finding.status == "mask" and len(self._masks) < PICTURES:
            self._masks.append(picture(finding, *(self._backend.host(mask) for mask in (values[0], given))))
        if self._until and not finding.passed:
            raise Culprit
        usable = self._local and finding.status not in ("missing", "shape", "dtype", "nan") and not tap.exact
        if self._local and self._case.task == "lm":
            self._look_at_logits(name, given, values[: 1 + self._controls], valid, usable)
        return self._handed_on(given, values, usable)

    def _look_at_logits(self, name: str, given: Any, own: list[Any], valid: Any, usable: bool) -> None:
        """The peer's distribution beside those that ours make of its last hidden states: where it shows `lm_head`, what
        is handed on there would compare the head with itself."""
        if name == "lm_head":
            self._before_head = own
        elif name == "logits":
            if self._before_head is not None:
                cap = self._cap
                own = [softcap(nx, value, cap) for nx, value in zip(self._numerics, self._before_head, strict=True)]
            self._before_head = None
            if usable:
                self._logits.add(self._backend, given, own[0], own[1:], valid)

    def _handed_on(self, given: Any, values: list[Any], usable: bool) -> list[Any]:
        return [self._backend.xp.asarray(given, dtype=value.dtype) for value in values] if usable else values

    def _examined(self, tap: Tap, call: int, given: Any, values: list[Any], valid: Any) -> Finding:
        controls = values[1 : 1 + self._controls]
        found = errors_of(tap, call, given, values[0], controls, valid, self._dtype, self._distances)
        if isinstance(found, Finding):
            return found
        if self._local:
            if float(np.median(found.legal)) > half.UNCLEAR:
                self._unclear[kind_of(tap.name)] = None
            return judged_values(tap, call, found, self._dtype, LIMITS["local"], "worst")
        self._pending.append((tap, call, found))
        return Finding(tap.name, call, "pass")

    def _pool(self) -> None:
        """Judge what the cumulative walk measured, by the error that is typical of the tap over all calls; of a stack
        that has few tokens by the largest along it, since one chain of roundings can be short by luck."""
        parts = defaultdict[str, list[Errors]](list)
        for tap, _, errors in self._pending:
            parts[tap.name].append(errors)
        usual = {tap.name: typical(parts[tap.name]) for tap, _, _ in self._pending}
        along = defaultdict[str, float](float)
        for tap, _, _ in self._pending:
            along[tap.module] = max(along[tap.module], usual[tap.name])
        for tap, call, errors in self._pending:
            few = sum(len(part.legal) for part in parts[tap.name]) < FEW
            most = along[tap.module] if few and tap.module else usual[tap.name]
            self._found[call, tap.name] = judged_values(
                tap, call, errors, self._dtype, LIMITS["cumulative"], "median", most
            )


def picture(finding: Finding, expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A failing mask's batch row as text, a line a query: "x" for a key that may be seen."""
    row, top = finding.token[0], max(0, finding.token[1] - SIDE + 1)
    shown = [
        ["".join(".x"[int(key)] for key in line[:SIDE]) for line in mask[row][top : top + SIDE]]
        for mask in (expected, found)
    ]
    rows = {"expected": shown[0], "found": shown[1], "clipped": max(expected.shape[1:]) > SIDE}
    return {"tap": finding.tap, "call": finding.call, "row": row, "first": top, **rows}
