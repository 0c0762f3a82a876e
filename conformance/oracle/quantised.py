"""Controls of a quantised engine: legal runs whose linear layers have weights, and inputs, rounded as it declares.

Only the size of that rounding is taken from the declaration: largest value of a group, symmetric, to the nearest. An
engine may choose its scales otherwise. Its error is then another one of about this size, and not the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from t5g2ref.numerics import Array, Numerics

LAYERS = ("*.layers.*proj.weight", "*.layers.*.fc1.weight", "*.layers.*.fc2.weight")
"""The weights that are quantised unless an engine says otherwise: every linear layer of a stack."""

TOP = {"int8": 127, "int4": 7, "fp8": 448}
"""The largest number of a type; fp8 is e4m3, of three bits behind the leading one."""

_FORM = re.compile(r"(int8|int4|fp8)(?:-(row|channel|[1-9]\d{0,5}))?(?:\+(int8|fp8))?")
FORM = "int8, int4 or fp8, then -row (the default), -channel or -32 (numbers of a group), then +int8 or +fp8 for inputs"


class SchemeError(ValueError):
    """What is declared is no scheme."""


@dataclass(frozen=True)
class Scheme:
    """How an engine rounds its linear layers.

    Args:
        kind: of the weights: "int8", "int4" or "fp8".
        along: what shares a scale: a "row" of the weight (an output), a "channel" (an input), or so many numbers of a
            row, as text.
        inputs: the type that the layer's inputs are rounded to, a scale for each token; "" for none.
    """

    kind: str
    along: str = "row"
    inputs: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.along}{'+' * bool(self.inputs)}{self.inputs}"

    def weight(self, xp: Any, value: Array) -> Array:
        """The weight (out, in) as the engine may have it, float32. The last group of a row may be shorter."""
        value = value.astype(xp.float32)
        if self.along in ("row", "channel"):
            return rounded(xp, value, self.kind, axis=1 if self.along == "row" else 0)
        (rows, width), size = value.shape, int(self.along)
        whole = xp.concatenate([value, xp.zeros((rows, -width % size), value.dtype)], axis=1)
        return rounded(xp, whole.reshape(rows, -1, size), self.kind, axis=2).reshape(rows, -1)[:, :width]


def parse(text: object) -> Scheme:
    """The scheme of a declaration as `FORM` has it. Raises SchemeError for another."""
    found = _FORM.fullmatch(text) if isinstance(text, str) and len(text) < 64 else None
    if found is None:
        raise SchemeError(f"expected {FORM}")
    return Scheme(found[1], found[2] or "row", found[3] or "")


def rounded(xp: Any, value: Array, kind: str, axis: int) -> Array:
    """The value, float32, on a grid of `kind` whose largest number is the largest along `axis`."""
    scale = xp.abs(value).max(axis=axis, keepdims=True) / TOP[kind]
    scale = xp.where(scale > 0, scale, 1).astype(xp.float32)
    return (_on_grid(xp, value / scale, kind) * scale).astype(xp.float32)


def _on_grid(xp: Any, scaled: Array, kind: str) -> Array:
    """Numbers of at most TOP, each rounded to the nearest of the type."""
    if kind != "fp8":
        return xp.rint(scaled)
    _, exponent = xp.frexp(scaled)  # |x| = m · 2^exponent with m from 1/2: four bits in all, subnormal below 2^-6
    step = xp.ldexp(xp.ones_like(scaled), xp.maximum(exponent, -5) - 4)
    return xp.rint(scaled / step) * step


@dataclass(frozen=True)
class Quantised(Numerics):
    """Numerics whose chosen linear layers are rounded by a scheme.

    Args:
        scheme: how.
        chosen: ids of the weights' objects, which the caller keeps alive.
    """

    scheme: Scheme = field(default_factory=lambda: Scheme("int8"))
    chosen: frozenset[int] = frozenset()

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        if id(weight) in self.chosen:
            weight = self.array(self.scheme.weight(self.xp, weight))
            if self.scheme.inputs:
                x = self.array(rounded(self.xp, x.astype(self.xp.float32), self.scheme.inputs, axis=x.ndim - 1))
        return super().linear(x, weight, bias)


def chosen(weights: Mapping[str, Any], patterns: Iterable[str] = LAYERS) -> frozenset[int]:
    """Ids of the weights with two axes whose names match."""
    patterns = tuple(patterns)
    return frozenset(
        id(value)
        for name, value in weights.items()
        if value.ndim == 2 and any(fnmatchcase(name, pattern) for pattern in patterns)
    )
