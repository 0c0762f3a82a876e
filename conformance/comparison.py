"""One peer's dump against the reference, tap by tap, as the reference walks through the case.

The local walk gives all of our runs the peer's own value after every tap that it shows; the cumulative one leaves them
alone. In float32 a tap is judged on the spot (`compare.py`); in a half-precision lane it is measured, beside its
worst-case bound and oracles with a defect, and the case is judged when it has been walked (`half.py`, `patterns.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from conformance import half, patterns
from conformance.case import Case
from conformance.ceiling import SMALLEST, ceiling
from conformance.compare import FEW, Errors, Finding, errors_of, exactly, kept, not_finite, refused, typical
from conformance.compare import values as judged_values
from conformance.distance import distances
from conformance.dump import Dump
from conformance.half import Limit, Measured
from conformance.lockstep import walk
from conformance.logits import LogitTest
from conformance.moments import moments
from conformance.oracle import program
from conformance.peers import Target
from conformance.placement import has_device
from conformance.signature import Signature
from t5g2ref import taps
from t5g2ref.config import Config
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import HALF, DType
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

Shown = Callable[[str], bool]


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
                self._unclear[half.kind_of(tap.name)] = None
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


class HalfComparison(Comparison):
    """The local walk of a half-precision lane: with bounds and oracles with defects beside truth and controls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._measured: list[Measured] = []

    def _members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        """Bounds and patterns hold for single operations, so only where the peer shows every tap."""
        if self._partial:
            return ours
        more = [ceiling(self._backend, self._dtype), *patterns.oracles(self._backend, self._dtype)]
        return [*ours, *(ours[0].with_numerics(nx) for nx in more)]

    def _examined(self, tap: Tap, call: int, given: Any, values: list[Any], valid: Any) -> Finding:
        truth, others = values[0], values[1 + self._controls :]
        finding = refused(tap, call, given, truth, valid, self._dtype)
        keep = kept(tap, truth, valid)
        if finding is not None or tap.exact:
            return finding or exactly(tap, call, given, truth, keep, self._distances)
        bound, *faulty = others or [None]
        shown = patterns.rows(faulty, tap.name) if faulty else []
        found = moments(
            self._backend,
            tap.token_axes,
            truth,
            given,
            values[1 : 1 + self._controls],
            None if tap.name == "loss" else bound,
            shown,
            SMALLEST[self._dtype],
        )
        broken = not_finite(tap, call, given, self._distances) if not np.isfinite(found.errors[0]).all() else None
        if broken is not None:
            return broken
        of = Measured(tap, call, found.of(keep.reshape(-1)), np.argwhere(keep) if keep.ndim else np.zeros((1, 0), int))
        self._measured.append(of)
        return half.judged([of], self._dtype)[0][0] if self._until else Finding(tap.name, call, "pass")

    def _handed_on(self, given: Any, values: list[Any], usable: bool) -> list[Any]:
        """Where the peer's value is of no use, bounds and oracles with defects go on with the truth's."""
        if usable:
            return super()._handed_on(given, values, usable)
        own = values[: 1 + self._controls]
        return [*own, *[values[0]] * (len(values) - len(own))]

    def _ended(self) -> Found:
        findings, limits, unclear = half.judged(self._measured, self._dtype)
        self._found |= {(f.call, f.tap): f for f in findings}
        signatures = patterns.signatures(self._measured)
        for signature in signatures:
            self._blame(signature)
        ended = super()._ended()
        return Found(ended.findings, limits, signatures, unclear, ended.logits, ended.masks)

    def _blame(self, signature: Signature) -> None:
        """A defect that was named fails the first of its taps, if nothing else did."""
        places = [p for p in self._found if fnmatchcase(p[1], signature.tap) or half.kind_of(p[1]) == signature.tap]
        if not signature.named or any(not self._found[p].passed for p in places):
            return
        first = next((call, tap.name) for call, tap in self._plan if (call, tap.name) in places)
        size, where = f"{signature.coefficient:.2f} ± {signature.error:.2f}", signature.tap
        self._found[first] = replace(
            self._found[first],
            status="signature",
            judged=signature.coefficient,
            limit=patterns.NAMED[0],
            detail=f"{size} of the pattern of {signature.defect} at {where}",
        )


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


def picture(finding: Finding, expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A failing mask's batch row as text, a line a query: "x" for a key that may be seen."""
    row, top = finding.token[0], max(0, finding.token[1] - SIDE + 1)
    shown = [
        ["".join(".x"[int(key)] for key in line[:SIDE]) for line in mask[row][top : top + SIDE]]
        for mask in (expected, found)
    ]
    rows = {"expected": shown[0], "found": shown[1], "clipped": max(expected.shape[1:]) > SIDE}
    return {"tap": finding.tap, "call": finding.call, "row": row, "first": top, **rows}


def plan_of(config: Config, case: Case) -> list[tuple[int, Tap]]:
    """Every (call, tap) that a peer has to show in this case, in order."""
    plan: list[tuple[int, Tap]] = []
    for call, (run, (first, _)) in enumerate(case.calls):
        images = run.pixel_values is not None
        table = taps.table(config, images=images, task=case.task, loss=run.labels is not None)
        plan += [(call, tap) for tap in table if first == 0 or not tap.first_call]
    return plan
