"""Looks for defects of rounding by their pattern: oracles with a defect walk beside the truth.

At a tap where a defect can show, the peer's error is regressed on three things: the defect's pattern (oracle with
it − oracle), the errors of the legal profiles, and the patterns of other defects there. All are in units of the
worst-case bound. A coefficient of 1 is the defect; a legal peer is at 0, whatever its rounding. How sure it is comes
from clusters (`measure/regression.py`), and from the coefficient that the same pattern has in a legal run's error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.cases.plan import kind_of
from conformance.defects.rounding import twins
from conformance.measure import limits
from conformance.measure.half import Measured
from conformance.measure.match import Signature
from conformance.measure.regression import Fit, clustered, coefficients, fit, fits
from t5g2ref import attention, ops, rope
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
    "D83": ("act_fn", "activation_fn"),
    "D84": ("norm", "layernorm", "q_norm", "k_norm", "mm_soft_emb_norm"),
    "D85": ("attention",),
}
"""Defect → endings of the names of taps where it shows."""

MEMBERS = (("D02", "D11", "D27", "D51", "D52"), ("D12",), ("D13",), ("D83", "D84", "D85"))
"""Each is one oracle. Its defects never show at the same tap, since every tap starts from the peer's value."""


class Lookout(Numerics):
    """Numerics of an oracle that is looked at in the operations of its defects alone: what others give is any number.

    It may be: each of them ends in a tap, behind which this oracle too goes on with the peer's value. So a linear layer
    gives zero here, and ELSEWHERE has the others.
    """

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        return self.xp.zeros((*x.shape[:-1], weight.shape[0]), self.storage)


def _as_given(*given: Any) -> Any:
    """x, of (definition, nx, x, …)."""
    return given[2]


def _no_weights(*given: Any) -> Any:
    """Zeros in the shape of attention's weights, of (definition, nx, q, k, …, grouped)."""
    _, nx, q, k, *_, grouped = given
    return nx.xp.zeros((*q.shape[:-1], k.shape[-2]), nx.storage).reshape(grouped)


ELSEWHERE = {
    ops.rms_norm.__name__: _as_given,
    ops.gelu_tanh.__name__: _as_given,
    ops.add_norm.__name__: None,
    ops.gated_gelu.__name__: None,
    attention.turned_norm.__name__: None,
    attention.attention_weights.__name__: _no_weights,
    rope.rotate.__name__: _as_given,
}
"""Twins of operations that an oracle is not looked at in; None for those that are made of others."""


def oracles(backend: Backend, dtype: DType) -> list[Numerics]:
    """The oracles with defects, for a peer in a half type."""
    made: list[Numerics] = []
    for defects in MEMBERS:
        faulty = {name: twin for d in defects for name, twin in twins(d, dtype).items()}
        made.append(Lookout("float64", EXACT, backend.with_twins({**ELSEWHERE, **faulty}), dtype))
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
    telling = next((t for v in ("named", "akin", "partly") if (t := [s for s in entries if s.verdict == v])), [])
    return telling[0] if telling else min(entries, key=lambda s: s.error)


def _collect(found: dict[str, list[Signature]], place: str, members: Sequence[Measured]) -> None:
    """The defects that can show at a place; of an attention also the heads that have one by themselves."""
    defects = [d for d in shown_at(members[0].tap.name) if d is not None]
    grams = [m.moments.gram for m in members]
    here = regression(defects, place, grams)
    if place.endswith("self_attn.attention") and not any(s.named for s in here):
        for head in range(grams[0].shape[2]):
            own = [gram[:, :, head] for gram in grams]
            if _may_name(len(defects), own):
                here += [replace(s, head=head) for s in regression(defects, place, own) if s.named]
    for signature in here:
        found[signature.defect].append(signature)


def _may_name(defects: int, grams: Sequence[Any]) -> bool:
    """Whether a coefficient is as large as that of a named defect has to be. The errors take ten times as long."""
    gram = clustered(grams).sum(axis=2)
    found = coefficients(gram, range(1, len(gram)))[-defects:]
    return bool((found >= limits.PATTERN_AKIN[0]).any())


def regression(defects: Sequence[str], place: str, grams: Sequence[Any]) -> list[Signature]:
    """What is of each defect in the peer's error at these taps: its coefficient beside the legal profiles' errors.

    A coefficient has two errors. One is the peer's own. The other is by how much a legal run's rounding moves it; where
    no legal run has an error in the pattern's elements, the peer's own stands for it.
    """
    gram = clustered(grams)
    legal = gram.shape[0] - 1 - len(defects)
    controls, patterns = range(1, 1 + legal), range(1 + legal, len(gram))
    peer = fit(gram, 0, [*controls, *patterns])
    chance = fits(gram, controls, patterns)
    rounding = max(f.whole for f in chance)
    found = []
    for i, defect in enumerate(defects):
        usual = max(float(f.coefficients[i]) for f in chance)
        own = float(peer.errors[legal + i])
        noise = max(float(f.errors[i]) for f in chance) or own
        known = gram.shape[2] >= limits.CLUSTERS and bool(gram[patterns[i], patterns[i]].any()) and noise >= 0
        coefficient, error = float(peer.coefficients[legal + i]), max(own, noise) if known else float("inf")
        verdict = verdict_of(coefficient, usual, noise if known else float("inf"), error, _explains(peer, rounding))
        residual = float(np.sqrt(peer.left / peer.whole)) if peer.whole > 0 else 0.0
        found.append(Signature(defect, place, coefficient, error, residual, verdict))
    return found


def _explains(peer: Fit, rounding: float) -> bool:
    """Whether no more is left of the peer's error than a legal run has, and a part of what was above that."""
    above = max(0.0, peer.whole - rounding)
    return peer.left <= rounding * limits.PATTERN_ROUNDING + limits.PATTERN_LEFT * above


def verdict_of(coefficient: float, usual: float, noise: float, error: float, explains: bool) -> str:
    """See `Signature`. `usual`: of the pattern in the error of a legal run; `noise`: how far chance moves it."""
    if not noise * limits.PATTERN_POWER <= 1:
        return "no power"
    beyond = coefficient - max(0.0, usual)
    if beyond < max(limits.PATTERN_PART, limits.PATTERN_POWER * noise):
        return "absent"
    low, high = limits.PATTERN_AKIN
    sure = error * limits.PATTERN_POWER <= min(1.0, coefficient)
    if not sure or not low <= coefficient <= high:
        return "partly"
    near = min(limits.PATTERN_NEAR * error, limits.PATTERN_AWAY)
    return "named" if explains and abs(coefficient - 1) <= near else "akin"


def rows(values: Sequence[Any], name: str) -> list[Any]:
    """The values of those oracles whose defects can show at this tap."""
    return [value for value, defect in zip(values, shown_at(name), strict=True) if defect is not None]
