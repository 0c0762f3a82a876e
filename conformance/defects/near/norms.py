"""Faults near the norm's defects: D11 (a short factor), D12 (rounded before the factor), D13 (a short variance)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conformance.defects.injection import Injection, operation
from conformance.defects.near.shortened import bf16, bits, cut, fp16, near
from t5g2ref.numerics import Array, Numerics

Norm = Callable[[Numerics, Array, Array, float], Array]
TAP = "encoder.text_model.layers.*norm"


def _mean(x: Array) -> Array:
    return (x * x).mean(axis=-1, keepdims=True)


def _inverse(nx: Numerics, x: Array, eps: float) -> Array:
    return 1.0 / nx.xp.sqrt(_mean(x) + eps)


def _unbiased(nx: Numerics, x: Array, eps: float) -> Array:
    width = x.shape[-1]
    return 1.0 / nx.xp.sqrt(_mean(x) * width / (width - 1) + eps)


def norm(formula: Norm) -> Injection:
    """Another RMS norm; x and the weight are wide."""

    def twin(_: Any, nx: Numerics, x: Array, weight: Array, eps: float) -> Array:
        return nx.cast(formula(nx, nx.wide(x), nx.wide(nx.weight(weight)), eps))

    return operation(rms_norm=twin)


def _rounded_parts(nx: Numerics, x: Array, w: Array, eps: float) -> Array:
    normed = bf16(nx, x * _inverse(nx, x, eps))
    return normed + bf16(nx, normed * w)


FORMULAS: list[tuple[str, str, Norm]] = [
    ("D13", "the inverse root is in bfloat16", lambda nx, x, w, e: x * bf16(nx, _inverse(nx, x, e)) * (1 + w)),
    ("D13", "the inverse root is in float16", lambda nx, x, w, e: x * fp16(nx, _inverse(nx, x, e)) * (1 + w)),
    ("D13", "the root is in bfloat16", lambda nx, x, w, e: x / bf16(nx, nx.xp.sqrt(_mean(x) + e)) * (1 + w)),
    ("D13", "the variance is in float16", lambda nx, x, w, e: x / nx.xp.sqrt(fp16(nx, _mean(x)) + e) * (1 + w)),
    ("D13", "the variance has 10 bits", lambda nx, x, w, e: x / nx.xp.sqrt(bits(nx, _mean(x), 10) + e) * (1 + w)),
    ("D13", "the variance is divided by one less", lambda nx, x, w, e: x * _unbiased(nx, x, e) * (1 + w)),
    ("D11", "the factor is in float16", lambda nx, x, w, e: x * _inverse(nx, x, e) * fp16(nx, 1 + w)),
    ("D11", "the factor has 10 bits", lambda nx, x, w, e: x * _inverse(nx, x, e) * bits(nx, 1 + w, 10)),
    ("D11", "the factor has 9 bits", lambda nx, x, w, e: x * _inverse(nx, x, e) * bits(nx, 1 + w, 9)),
    ("D11", "the factor is cut to bfloat16", lambda nx, x, w, e: x * _inverse(nx, x, e) * cut(nx, 1 + w)),
    ("D12", "float16 before the factor", lambda nx, x, w, e: fp16(nx, x * _inverse(nx, x, e)) * (1 + w)),
    ("D12", "10 bits before the factor", lambda nx, x, w, e: bits(nx, x * _inverse(nx, x, e), 10) * (1 + w)),
    ("D12", "cut to bfloat16 before the factor", lambda nx, x, w, e: cut(nx, x * _inverse(nx, x, e)) * (1 + w)),
    ("D12", "the factor first, rounded", lambda nx, x, w, e: bf16(nx, x * (1 + w)) * _inverse(nx, x, e)),
    ("D12", "the result is cut off", lambda nx, x, w, e: cut(nx, x * _inverse(nx, x, e) * (1 + w))),
    ("D12", "the result is rounded twice", lambda nx, x, w, e: bits(nx, x * _inverse(nx, x, e) * (1 + w), 9)),
]
FAULTS = [
    fault
    for number, (defect, title, formula) in enumerate(FORMULAS, 1)
    for fault in near(defect, number, title, TAP, norm(formula))
]
FAULTS += near("D12", len(FORMULAS) + 1, "x + x·w, each rounded", TAP, norm(_rounded_parts), alike=("D12",))
