"""Faults near D52, erf in place of tanh: other constants, short intermediates, other functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from conformance.defects.injection import Injection, operation
from conformance.defects.near.shortened import bf16, bits, fp16, near
from t5g2ref.activation import erf
from t5g2ref.numerics import Array, Numerics

Formula = Callable[[Numerics, Array], Array]
ROOT = math.sqrt(2.0 / math.pi)
TAP = "encoder.text_model.layers.*.mlp.act_fn"


def _inner(x: Array, root: float = ROOT, factor: float = 0.044715) -> Array:
    return root * (x + factor * (x * x * x))


def _gelu(x: Array, tanh: Array) -> Array:
    return 0.5 * x * (1.0 + tanh)


def _tanh(nx: Numerics, x: Array) -> Array:
    return nx.xp.tanh(_inner(x))


def _erf(nx: Numerics, x: Array) -> Array:
    return erf(nx.xp, x.astype("float64") / math.sqrt(2.0)).astype(x.dtype)


def activation(formula: Formula) -> Injection:
    """Another activation; x is wide."""

    def twin(_: Any, nx: Numerics, x: Array) -> Array:
        return nx.cast(formula(nx, nx.wide(x)))

    return operation(gelu_tanh=twin)


FORMULAS: list[tuple[str, Formula]] = [
    ("tanh has 10 bits", lambda nx, x: _gelu(x, bits(nx, _tanh(nx, x), 10))),
    ("tanh has 11 bits", lambda nx, x: _gelu(x, bits(nx, _tanh(nx, x), 11))),
    ("tanh has 12 bits", lambda nx, x: _gelu(x, bits(nx, _tanh(nx, x), 12))),
    ("tanh is in bfloat16", lambda nx, x: _gelu(x, bf16(nx, _tanh(nx, x)))),
    ("1 + tanh has 11 bits", lambda nx, x: 0.5 * x * bits(nx, 1.0 + _tanh(nx, x), 11)),
    ("the factor is 0.045", lambda nx, x: _gelu(x, nx.xp.tanh(_inner(x, factor=0.045)))),
    ("√(2/π) is in bfloat16", lambda nx, x: _gelu(x, nx.xp.tanh(_inner(x, root=0.796875)))),
    ("the argument of tanh is in bfloat16", lambda nx, x: _gelu(x, nx.xp.tanh(bf16(nx, _inner(x))))),
    ("the argument of tanh is in float16", lambda nx, x: _gelu(x, nx.xp.tanh(fp16(nx, _inner(x))))),
    ("half of it is erf", lambda nx, x: 0.5 * _gelu(x, _tanh(nx, x)) + 0.5 * _gelu(x, _erf(nx, x))),
    ("erf where x is positive", lambda nx, x: nx.xp.where(x > 0, _gelu(x, _erf(nx, x)), _gelu(x, _tanh(nx, x)))),
    ("erf of 11 bits", lambda nx, x: _gelu(x, bits(nx, _erf(nx, x), 11))),
    ("x / (1 + exp(-1.702 x))", lambda nx, x: x / (1.0 + nx.xp.exp(-1.702 * x))),
    ("x / (1 + exp(-x))", lambda nx, x: x / (1.0 + nx.xp.exp(-x))),
    ("tanh is a little steeper", lambda nx, x: _gelu(x, nx.xp.tanh(1.0005 * _inner(x)))),
]
FAULTS = [
    fault
    for number, (title, formula) in enumerate(FORMULAS, 1)
    for fault in near("D52", number, title, TAP, activation(formula))
]
