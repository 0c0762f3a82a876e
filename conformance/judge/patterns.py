"""Looks for defects of rounding by their pattern: oracles with a defect walk beside the truth.

At a tap where a defect can show, the peer's error is regressed on three things: the defect's pattern (oracle with
it − oracle), the errors of the legal profiles, and the patterns of other defects there. All are in units of the
worst-case bound. A coefficient of 1 is the defect; a legal peer is at 0, whatever its rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from conformance.cases.plan import kind_of
from conformance.defects.rounding import twins
from conformance.measure import limits
from conformance.measure.half import Measured
from conformance.measure.match import Signature
from t5g2ref.backend import Backend
from t5g2ref.dtypes import DType
from t5g2ref.numerics import EXACT, Numerics

SHOWN: dict[str, tuple[str, ...]] = {
    "D02": ("embed_tokens",),
    "D11": ("norm", "layernorm", "q_norm", "k_norm", "mm_soft_emb_norm"),
    "D12": ("norm", "layernorm", "q_norm", "k_norm", "mm_soft_emb_norm"),
    "D13": ("norm", "layernorm", "q_norm", "k_norm", "mm_soft_emb_norm"),
    "D27": ("cos", "sin"),
    "D51": ("attention",),
    "D52": ("act_fn", "activation_fn"),
}
"""Defect → endings of the names of taps where it shows."""

MEMBERS = (("D02", "D11", "D27", "D51", "D52"), ("D12",), ("D13",))
"""Each is one oracle. Its defects never show at the same tap, since every tap starts from the peer's value."""


def oracles(backend: Backend, dtype: DType) -> list[Numerics]:
    """The oracles with defects, for a peer in a half type."""
    made = []
    for defects in MEMBERS:
        faulty = {name: twin for d in defects for name, twin in twins(d, dtype).items()}
        made.append(Numerics("float64", EXACT, backend.with_twins(faulty), dtype))
    return made


def shown_at(name: str) -> list[str | None]:
    """For each oracle, the defect that it shows at this tap, or None."""
    last = name.rsplit(".", 1)[-1]
    return [next((d for d in defects if last.endswith(SHOWN[d])), None) for defects in MEMBERS]


def signatures(measured: Sequence[Measured]) -> list[Signature]:
    """One signature for each defect, from the place that tells most.

    That is the first tap that names it, else the first kind of tap that does, over all layers. Else it is the first
    place where a part of it is, else the place with the most power.
    """
    found: dict[str, list[Signature]] = defaultdict(list)
    pools: dict[str, list[Measured]] = defaultdict(list)
    for m in measured:
        if m.moments.gram.shape[0]:
            pools[kind_of(m.tap.name)].append(m)
            _collect(found, m.tap.name, [m])
    for kind, members in pools.items():
        _collect(found, kind, members)
    return [_telling(entries) for _, entries in sorted(found.items())]


def _telling(entries: Sequence[Signature]) -> Signature:
    """The signature that tells most. Single taps come first, in the order of the computation."""
    telling = [s for s in entries if s.named] or [s for s in entries if s.partly]
    return telling[0] if telling else min(entries, key=lambda s: s.error)


def _collect(found: dict[str, list[Signature]], place: str, members: Sequence[Measured]) -> None:
    defects = [d for d in shown_at(members[0].tap.name) if d is not None]
    for signature in regression(defects, place, members):
        found[signature.defect].append(signature)


def regression(defects: Sequence[str], place: str, members: Sequence[Measured]) -> list[Signature]:
    """Signatures from joint least squares over all elements of these taps."""
    gram = np.sum([m.moments.gram.sum(axis=2) for m in members], axis=0)
    count = sum(m.moments.features * m.moments.norm.size for m in members)
    legal = gram.shape[0] - 1 - len(defects)
    target, normal = gram[0, 1:], gram[1:, 1:]
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-300))
    inverse = np.linalg.pinv(normal / np.outer(scale, scale), rcond=1e-9, hermitian=True) / np.outer(scale, scale)
    coefficients = inverse @ target
    left = max(0.0, float(gram[0, 0] - coefficients @ target))
    # the noise is at least a legal run's own: a peer that equals a control to the bit has no noise to go by
    noise = max(left, float(np.diag(normal)[:legal].min())) / max(1, count - normal.shape[0])
    result = []
    for i, defect in enumerate(defects, start=legal):
        error = float(np.sqrt(noise * max(0.0, inverse[i, i]))) if normal[i, i] > 0 else float("inf")
        residual = float(np.sqrt(left / gram[0, 0])) if gram[0, 0] > 0 else 0.0
        result.append(_signature(defect, place, float(coefficients[i]), error, residual))
    return result


def _signature(defect: str, place: str, coefficient: float, error: float, residual: float) -> Signature:
    power = error > 0 and 1 / error >= limits.PATTERN_POWER
    low, high = limits.PATTERN_NAMED
    named = power and low <= coefficient <= high and coefficient >= limits.PATTERN_POWER * error
    partly = power and abs(coefficient) >= max(limits.PATTERN_PART, limits.PATTERN_POWER * error)
    verdict = "named" if named else "partly" if partly else "absent" if power else "no power"
    return Signature(defect, place, coefficient, error, residual, verdict)


def rows(values: Sequence[Any], name: str) -> list[Any]:
    """The values of those oracles whose defects can show at this tap."""
    return [value for value, defect in zip(values, shown_at(name), strict=True) if defect is not None]
