"""The operations of the model that are not plain products: norms, activation, softmax, softcap.

Each is a pure function of arrays. Norm, activation and softmax compute in `nx.wide` and round once at the end, as the
released model does (transformers' T5Gemma2RMSNorm, torch's layer_norm, gelu and softmax on half types). One that
rounds in between says so.
"""

from __future__ import annotations

import math

from t5g2ref.blocks import elementwise
from t5g2ref.numerics import Array, Numerics, twinned
from t5g2ref.trace import OFF, Trace


@twinned
def rms_norm(nx: Numerics, x: Array, weight: Array, eps: float) -> Array:
    """x / √(mean(x²) + eps) · (1 + weight) over the last axis.

    Shapes: x (…, D), weight (D,) → (…, D). The stored weight is centred on zero, so the factor is 1 + weight; sum,
    root and factor are formed wide and the result is rounded once (Gemma's order, not Llama's).
    """
    x = nx.wide(x)
    scale = 1.0 / nx.xp.sqrt(nx.mean(x * x) + eps)
    return nx.cast(x * scale * (1.0 + nx.wide(nx.weight(weight))))


@twinned
def add_norm(
    nx: Numerics, residual: Array, x: Array, weight: Array, eps: float, name: str, trace: Trace = OFF
) -> Array:
    """residual + rms_norm(x), the norm rounded before the sum; tap `name` shows it."""
    return nx.add(residual, trace(name, rms_norm(nx, x, weight, eps)))


@twinned
def layer_norm(nx: Numerics, x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """(x − mean) / √(var + eps) · weight + bias over the last axis; var is the biased variance.

    Shapes: x (…, D), weight and bias (D,) → (…, D).
    """
    x = nx.wide(x)
    centred = x - nx.mean(x)
    scale = 1.0 / nx.xp.sqrt(nx.mean(centred * centred) + eps)
    return nx.cast(centred * scale * nx.wide(nx.weight(weight)) + nx.wide(nx.weight(bias)))


@twinned
@elementwise
def gelu_tanh(nx: Numerics, x: Array) -> Array:
    """x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))): the tanh form of GELU (Hendrycks and Gimpel, 2016), which is
    the released activation; the erf form differs by up to 4.7e-4."""
    x = nx.wide(x)
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))
    return nx.cast(0.5 * x * (1.0 + nx.xp.tanh(inner)))


@twinned
@elementwise
def gated_gelu(nx: Numerics, gate: Array, up: Array, trace: Trace = OFF) -> Array:
    """gelu_tanh(gate) · up, the activation rounded before the product; tap `act_fn` shows it."""
    return nx.mul(trace("act_fn", gelu_tanh(nx, gate)), up)


@twinned
def across_ties(nx: Numerics, a: Array, b: Array) -> Array:
    """a (…, R, H) @ b (…, H, s), rounded once; near a tie to the other side of it.

    Near is what two float32 sums of these terms may differ by: of H roundings about √H errors of half an ulp remain.
    """
    product, squares = nx.product(a, b), nx.product(nx.wide(a) ** 2, nx.wide(b) ** 2)
    size = nx.xp.abs(product) + nx.xp.sqrt(squares)
    return nx.across(product, size * (2.0**-23 * a.shape[-1] ** 0.5))


@twinned
def softcap(nx: Numerics, x: Array, cap: float | None) -> Array:
    """cap · tanh(x / cap), each step rounded to the model's type; `x` itself when cap is None. Quotient and product are
    formed wide: beside a native half array `cap` would be rounded to its type."""
    if cap is None:
        return x
    x = nx.cast(nx.wide(x) / cap)
    x = nx.cast(nx.xp.tanh(nx.wide(x)))
    return nx.cast(nx.wide(x) * cap)


@twinned
def masked_softmax(nx: Numerics, scores: Array, allowed: Array | None) -> Array:
    """Softmax over the last axis, with weight exactly 0 where not allowed.

    Shapes: scores (…, S) of any float type; allowed broadcastable to it, bool, or None for all.
    A row with nothing allowed gets zeros: such a row has no defined output, and no valid row reads it;
    0 / 0 must not become a NaN that could. Hence select, and never multiply or add a large negative number.
    """
    xp, scores = nx.xp, _masked(nx, scores, allowed)
    top = scores.max(axis=-1, keepdims=True)
    weights = xp.exp(scores - xp.where(xp.isfinite(top), top, 0.0))
    total = nx.total(weights)
    return nx.cast(weights / xp.where(total == 0.0, 1.0, total))


def _masked(nx: Numerics, scores: Array, allowed: Array | None) -> Array:
    scores = nx.wide(scores)
    return scores if allowed is None else nx.xp.where(allowed, scores, -nx.xp.inf)


def flash_softmax(nx: Numerics, scores: Array) -> Array:
    """The weights that a flash kernel multiplies values with, wide: exponentials rounded, divided by their unrounded
    sum. Each step of `flash_keys` keys rounds them relative to the largest score so far.

    Shapes: scores (…, S) wide, −∞ where not allowed. A row of −∞ alone gets zeros.
    """
    xp, size = nx.xp, scores.shape[-1]
    so_far, parts = xp.full_like(scores[..., :1], -xp.inf), []
    for start in range(0, size, nx.profile.flash_keys):
        part = scores[..., start : start + nx.profile.flash_keys]
        so_far = xp.maximum(so_far, part.max(axis=-1, keepdims=True))
        parts.append((part, xp.where(xp.isfinite(so_far), so_far, 0.0)))
    top = parts[-1][1]
    powers = [(xp.exp(part - seen), xp.exp(xp.minimum(seen - top, 0.0))) for part, seen in parts]
    total = sum(nx.total(power) * later for power, later in powers)
    rounded = xp.concatenate([nx.wide(nx.cast(power)) * later for power, later in powers], axis=-1)
    return rounded / xp.where(total == 0.0, 1.0, total)


@twinned
def scaled_softmax(nx: Numerics, products: Array, scale: float, cap: float | None, allowed: Array | None) -> Array:
    """masked_softmax of products · scale, softcapped if there is a cap, all of it wide.

    Shapes: products (…, S) wide; allowed as for `masked_softmax`. A flash kernel's weights stay wide.
    """
    scores = products * scale
    scores = scores if cap is None else cap * nx.xp.tanh(scores / cap)
    if nx.profile.flash_keys:
        return flash_softmax(nx, _masked(nx, scores, allowed))
    return masked_softmax(nx, scores, allowed)
