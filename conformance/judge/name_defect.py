"""Names the catalogued defect that a culprit is. It needs nothing of the peer but its dump.

Some defects can show first at the culprit's kind of tap, or at a kind that the peer does not show. For each, the
float64 oracle with that fault walks up to the culprit, and so does the clean one. At every tap before, both go on with
the peer's value, so that only what it does not show lies between them and the peer. Let e = peer − clean and
s = faulty − clean, over the valid tokens. The defect is named when e is s: the coefficient c = ⟨s, e⟩ / ⟨s, s⟩ is near
1, and ‖e − c·s‖ is a small part of ‖e‖.

* In float32, a peer with that very defect has c and ‖e − c·s‖ to 1e-4. So c may be off by a thousandth beside its own
  spread, and 2 % of ‖e‖ may be left.
* In a half type, rounding is mixed in. So c has to be within a tenth, and a fifth of ‖e‖ (4 % of the squared error) may
  be left. With more, the name would not be safe.
* Where no defect fits alone, two at once may: see `name_pair`.
* Where nothing is named, the pattern that explains most of ‖e‖ with another c is called akin.
* Where the tap is a handful of numbers (a loss), nothing is left over by chance. So c has to be within a hundredth.

Several defects may do the very same at one tap. Then each is walked through the whole case, and the one that is
contradicted at the fewest taps is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.cases.plan import plan_of, validity
from conformance.defects.all import FAULTS
from conformance.defects.catalogue import DEFECTS, first_seen_at
from conformance.defects.injection import HEALTHY, Fault
from conformance.judge.apart import is_small
from conformance.judge.faulty_walk import FaultyWalk, rows_of
from conformance.judge.name_pair import Tried, named_pair
from conformance.measure import limits
from conformance.measure.finding import Finding
from conformance.measure.match import Signature
from conformance.target import Target
from t5g2ref.dtypes import HALF, DType, unit_roundoff
from t5g2ref.taps import Tap

Host = np.ndarray[Any, Any]


Fitting = dict[str, list[Fault]]
"""Defect id → its variants that fit."""


def named(target: Target, case: Case, dump: Dump, dtype: DType, culprit: Finding) -> list[Signature]:
    """A signature for each defect that can show at the first failing local tap, the named ones first."""
    return looked_for(target, case, dump, dtype, culprit)[0]


def looked_for(
    target: Target, case: Case, dump: Dump, dtype: DType, culprit: Finding
) -> tuple[list[Signature], Fitting]:
    """The signatures of `named`, and the variants of the defects that are named.

    Args:
        dump: the peer's, still open.
        culprit: the finding of a local walk.
    """
    plan = plan_of(target.config, case)
    tap = next((t for call, t in plan if (call, t.name) == (culprit.call, culprit.tap)), None)
    peer = dump.get(culprit.call, culprit.tap)
    quick = is_small(target) and not case.costly  # dozens of walks are a second there, and minutes elsewhere
    chosen = candidates(culprit.tap, _unseen(plan, dump, culprit) if quick else ())
    if tap is None or peer is None or culprit.status == "dtype" or not chosen:
        return [], {}
    walk = FaultyWalk(target, case, dump, dtype, culprit)
    clean = walk.value(HEALTHY)
    if clean is None:
        return [], {}
    judge = _judge_of(tap, target.backend.host(peer), clean, case, culprit, dtype)
    found: dict[str, Signature] = {}
    fitting: Fitting = {}
    tried: list[Tried] = []
    for fault in chosen:
        faulty = walk.value(fault.inject)
        if faulty is not None:
            signature = judge(fault.id, faulty)
            found[fault.id] = min(found.get(fault.id, signature), signature, key=_fit)
            tried.append((fault, faulty, signature))
            if signature.named:
                fitting.setdefault(fault.id, []).append(fault)
    least = _least(target.backend.host(peer), clean, dtype)
    exact = tap.exact or dtype not in HALF
    both = named_pair(tried, clean, judge, walk if quick else None, least) if exact and not fitting else []
    if both:
        return both, {}
    best = _best(list(found.values()), least)
    told = _akin_once(_told_apart(best, fitting, walk))
    return told, {s.defect: fitting[s.defect] for s in told if s.named}


def _unseen(plan: list[tuple[int, Tap]], dump: Dump, culprit: Finding) -> list[str]:
    """The taps before the culprit that the peer does not show: what is wrong there shows at the culprit."""
    before = takewhile(lambda place: (place[0], place[1].name) != (culprit.call, culprit.tap), plan)
    return [tap.name for call, tap in before if dump.get(call, tap.name) is None]


def candidates(tap: str, unseen: Iterable[str] = ()) -> list[Fault]:
    """The catalogued faults that can show first at a tap of this kind or of those that nobody shows, each once."""
    kinds = {kind_of(name): name for name in (*unseen, tap)}
    ids = {defect for name in kinds.values() for defect in first_seen_at(name, DEFECTS)}
    chosen = {
        (fault.id, fault.variant): fault
        for fault in FAULTS
        if fault.catalogued
        and fault.named
        and fault.prepared is None
        and (fault.id in ids or kind_of(fault.tap) in kinds)
    }
    return list(chosen.values())


def kind_of(tap: str) -> str:
    """The last part of a tap's name; "layers" for a layer's output."""
    last = tap.rsplit(".", 1)[-1]
    return "layers" if last.isdigit() else last


def _misfit(s: Signature) -> float:
    """How much of the error is left when the pattern is taken from it once."""
    return float(np.hypot(s.residual, s.coefficient - 1))


def _fit(signature: Signature) -> tuple[bool, float]:
    return not signature.named, _misfit(signature)


def _least(peer: Host, clean: Host, dtype: DType) -> float:
    """The smallest misfit that means anything. In a half type all patterns are held against the same rounded values: by
    what one fits worse than another, beyond a rounding of the value itself, they are told apart."""
    if dtype not in HALF or peer.shape != clean.shape:
        return limits.NAME_SAME * unit_roundoff(dtype)
    error = _norm(peer.astype(np.float64) - clean)
    return unit_roundoff(dtype) * _norm(clean) / error if error > 0 else 0.0


def _best(found: list[Signature], least: float) -> list[Signature]:
    """In the order of their fit; of those that fit, the ones that fit clearly worse than the best are not named."""
    least = max(least, min((_misfit(s) for s in found if s.named), default=0.0))
    kept = [replace(s, verdict="absent") if s.named and _misfit(s) > limits.NAME_ALIKE * least else s for s in found]
    return sorted(kept, key=_fit)


def _told_apart(found: list[Signature], fitting: dict[str, list[Fault]], walk: FaultyWalk) -> list[Signature]:
    """Of several that fit at the culprit, those that contradict the peer at the fewest taps of the whole case."""
    ids = [s.defect for s in found if s.named]
    if len(ids) < 2:
        return found
    against = {defect: min(walk.contradicted(fault.inject) for fault in fitting[defect]) for defect in ids}
    least = min(against.values())
    kept = [replace(s, verdict="absent") if s.named and against[s.defect] > least else s for s in found]
    return sorted(kept, key=_fit)


def _akin_once(found: list[Signature]) -> list[Signature]:
    """With one pattern akin at most: the one that explains most, and none where a defect is named."""
    named = any(s.named for s in found)
    best = min((s for s in found if s.akin), key=lambda s: s.residual, default=None)
    return [replace(s, verdict="absent") if s.akin and (named or s is not best) else s for s in found]


Judge = Callable[[str, Host], Signature]


def _judge_of(tap: Tap, peer: Host, clean: Host, case: Case, culprit: Finding, dtype: DType) -> Judge:
    """A function that makes a signature of a faulty oracle's value: by shape, bits, NaN or numbers."""

    def made(defect: str, verdict: str, coefficient: float, residual: float, error: float = 0.0) -> Signature:
        return Signature(defect, culprit.tap, coefficient, error, residual, verdict)

    def shape(defect: str, faulty: Host) -> Signature:
        if faulty.shape != peer.shape:
            return made(defect, "no power" if faulty.shape == clean.shape else "absent", 0.0, 1.0)
        left = _norm(peer.astype(np.float64) - faulty) / (_norm(faulty) or 1.0)
        return made(defect, "named" if left < limits.NAME_LEFT else "absent", 1.0, left)

    if peer.shape != clean.shape:
        return shape
    valid = validity(case, culprit.call, tap, clean.shape)
    expected, found = rows_of(tap, clean, valid), rows_of(tap, peer, valid)

    def bits(defect: str, faulty: Host) -> Signature:
        if faulty.shape != clean.shape:
            return made(defect, "absent", 0.0, 1.0)
        other = rows_of(tap, faulty, valid)
        wrong, left = int((found != expected).sum()), int((found != other).sum())
        power = bool((other != expected).any())
        verdict = "no power" if not power else "named" if left == 0 else "absent"
        return made(defect, verdict, float(left == 0 and power), min(1.0, left / max(1, wrong)))

    def broken(defect: str, faulty: Host) -> Signature:
        same = faulty.shape == clean.shape and bool((np.isfinite(faulty) == np.isfinite(peer)).all())
        power = not np.isfinite(faulty).all()
        return made(defect, "named" if same and power else "absent" if power else "no power", float(same), 1.0 - same)

    def values(defect: str, faulty: Host) -> Signature:
        if faulty.shape != clean.shape or not np.isfinite(faulty).all():
            return made(defect, "absent", 0.0, 1.0)
        pattern = rows_of(tap, faulty, valid) - expected
        return _regressed(made, defect, pattern, found.astype(np.float64) - expected, _norm(expected), dtype)

    if tap.exact:
        return bits
    return values if np.isfinite(peer.astype(np.float64)).all() else broken


def _regressed(
    made: Callable[..., Signature], defect: str, pattern: Host, error: Host, size: float, dtype: DType
) -> Signature:
    strength, whole = _norm(pattern), _norm(error)
    if not strength > unit_roundoff(dtype) * size or not whole > 0:
        return made(defect, "no power", 0.0, 1.0, float("inf"))
    coefficient = float(np.vdot(pattern, error)) / strength**2
    rest = _norm(error - coefficient * pattern)
    spread = rest / strength / max(1, error.size - 1) ** 0.5
    near, left = limits.NAME_NEAR if error.size >= limits.FEW_NUMBERS else limits.NAME_NEAR_FEW, limits.NAME_LEFT
    if dtype not in HALF and error.size >= limits.FEW_NUMBERS:
        near, left = (
            min(limits.NAME_NEAR_FEW, limits.NAME_NEAR_SINGLE + limits.NAME_SPREADS * spread),
            limits.NAME_LEFT_SINGLE,
        )
    akin = "akin" if rest / whole < limits.NAME_AKIN and error.size >= limits.FEW_NUMBERS else "absent"
    verdict = "named" if abs(coefficient - 1) < near and rest / whole < left else akin
    return made(defect, verdict, coefficient, rest / whole, spread)


def _norm(x: Host) -> float:
    return float(np.linalg.norm(x.astype(np.float64).reshape(-1)))
