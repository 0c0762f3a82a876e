"""Faults near D51, bfloat16 scores and softmax: single steps of it, other types, and steps cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from conformance.defects.injection import Injection, operation
from conformance.defects.near.shortened import bf16, bits, cut, fp16, near
from t5g2ref.numerics import Array, Numerics

Step = Callable[[Numerics, Array], Array]
TAP = "encoder.text_model.layers.*.self_attn.attention"


def _wide(_: Numerics, x: Array) -> Array:
    return x


@dataclass(frozen=True)
class Steps:
    """What is done to each intermediate value of a softmax over scaled products."""

    products: Step = _wide
    scores: Step = _wide
    differences: Step = _wide
    powers: Step = _wide
    total: Step = _wide
    weights: Step = _wide

    def injection(self) -> Injection:
        return operation(attention_weights=self._twin)

    def _twin(
        self, _: Any, nx: Numerics, q: Array, k: Array, scale: float, cap: float | None, allowed: Any, grouped: Any
    ) -> Array:
        xp = nx.xp
        products = self.products(nx, nx.product(q, k.swapaxes(-1, -2)).reshape(grouped))
        scores = self.scores(nx, products * scale)
        scores = scores if cap is None else cap * xp.tanh(scores / cap)
        scores = scores if allowed is None else xp.where(allowed, scores, -xp.inf)
        top = scores.max(axis=-1, keepdims=True)
        differences = xp.maximum(scores - xp.where(xp.isfinite(top), top, 0.0), -1e30)
        powers = self.powers(nx, xp.exp(self.differences(nx, differences)))
        total = self.total(nx, powers.sum(axis=-1, keepdims=True))
        return nx.cast(self.weights(nx, powers / xp.where(total == 0.0, 1.0, total)))


def _more(_: Numerics, x: Array) -> Array:
    return x + 0.01


few = partial(bits, count=4)
seven = partial(bits, count=7)
FORMULAS: list[tuple[str, Steps]] = [
    ("the sum is one of rounded exponentials", Steps(powers=bf16)),
    ("the sum alone is in bfloat16", Steps(total=bf16)),
    ("exponentials and their sum are in bfloat16", Steps(powers=bf16, total=bf16)),
    ("scores are in float16", Steps(scores=fp16)),
    ("scores are rounded once", Steps(scores=bf16)),
    ("products are rounded once", Steps(products=bf16)),
    ("differences to the largest score are in bfloat16", Steps(differences=bf16)),
    ("differences and exponentials are in bfloat16", Steps(differences=bf16, powers=bf16)),
    ("scores and differences are in bfloat16", Steps(bf16, bf16, bf16)),
    ("weights are cut off", Steps(weights=cut)),
    ("exponentials are cut off", Steps(powers=cut)),
    ("exponentials have 4 bits", Steps(powers=few)),
    ("exponentials have 7 bits", Steps(powers=seven)),
    ("every step is in float16", Steps(fp16, fp16, fp16, fp16, fp16, fp16)),
    ("a hundredth is added to the sum", Steps(total=_more)),
]
FAULTS = [
    fault
    for number, (title, steps) in enumerate(FORMULAS, 1)
    for fault in near("D51", number, title, TAP, steps.injection())
]
