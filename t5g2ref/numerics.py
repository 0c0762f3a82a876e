"""The one object that knows the array library, the number type and where the model rounds.

The model is written once, over `Numerics`. Four number types:

* float64: the oracle. Nothing is rounded on purpose.
* float32: what a peer in float32 computes; its RoPE angles are float32 too.
* bfloat16, float16: on NumPy *emulated*: arrays are float32, and `cast` rounds them to the type's grid at the
  points where the model rounds. On CuPy the same calls are conversions between native types.

`wide` and `cast` are the model's islands: `wide(x)` enters one (float32 or better), `cast` leaves it with a single
rounding. In float64 and float32 both are free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import ml_dtypes
import numpy as np

Array = Any
DType = Literal["float64", "float32", "bfloat16", "float16"]
HALF = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Profile:
    """Where a legal implementation rounds, beyond the places that every one shares.

    Args:
        name: printed in reports.
        rope_angle: "float32" forms inverse frequencies and angles in float32, as transformers does; "exact" in
            float64. Far positions feel it: half an ulp of an angle near 1e4 is 5e-4 radians.
        round_scores: the attention scores are rounded to the model's type before and after the scale (an unfused
            softmax, transformers' eager path); a fused one keeps them wide. No difference in float32 and float64.
        split: a linear layer's sum is cut into this many partial sums. 1 leaves the order to the BLAS; other
            values are other legal orders, used to see how much of an error is a mere matter of order.
    """

    name: str
    rope_angle: Literal["exact", "float32"] = "float32"
    round_scores: bool = False
    split: int = 1


EXACT = Profile("exact", rope_angle="exact")
EAGER = Profile("eager", round_scores=True)
SDPA = Profile("sdpa")
REORDERED = Profile("reordered", split=4)


@dataclass(frozen=True)
class Numerics:
    """Backend, number type and rounding profile; see the module's page.

    Args:
        dtype: the type the model runs in.
        profile: the rounding points.
        xp: the array library, `numpy` or `cupy`.
        embed_dtype: the type of the running model's embedding table, which is the type that √hidden is rounded to
            (FACTS: a bfloat16 checkpoint loaded as float32 scales by the float32 root). Defaults to `dtype`; the
            float64 truth of a float32 peer sets it to float32.
    """

    dtype: DType = "float64"
    profile: Profile = EXACT
    xp: Any = np
    embed_dtype: DType | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not implemented; choose one of {', '.join(DTYPES)}")

    @property
    def emulated(self) -> bool:
        """Half types on NumPy: float32 arrays on the half type's grid."""
        return self.dtype in HALF and self.xp is np

    @property
    def storage(self) -> np.dtype[Any]:
        """The dtype that activations have in memory."""
        if self.dtype in HALF and not self.emulated:
            half: np.dtype[Any] = np.dtype(HALF[self.dtype])
            return half
        return self.wide_dtype

    @property
    def wide_dtype(self) -> np.dtype[Any]:
        """The dtype inside norms, softmax and activation functions: float32, or float64 for the oracle."""
        return np.dtype("float64" if self.dtype == "float64" else "float32")

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next number: the largest relative error of one rounding."""
        return unit_roundoff(self.dtype)

    def with_profile(self, profile: Profile) -> Numerics:
        return replace(self, profile=profile)

    def array(self, value: Any) -> Array:
        """`value` as an activation or a weight of this model, rounded to its grid; no copy if it has that type."""
        value = self.xp.asarray(value)
        if self.emulated:
            return to_grid(value, self.dtype) if value.dtype != HALF[self.dtype] else value.astype(np.float32)
        return value.astype(self.storage, copy=False)

    def weight(self, value: Array) -> Array:
        """A weight at its point of use. Weights may be kept narrower than the model runs (float32 under the
        float64 oracle: exact, half the memory); they are widened here, one layer at a time."""
        return value if value.dtype == self.storage and not self.emulated else self.array(value)

    def wide(self, x: Array) -> Array:
        """Enter an island: float32 (float64 for the oracle)."""
        return x.astype(self.wide_dtype, copy=False)

    def cast(self, x: Array) -> Array:
        """Leave an island: one rounding to the model's type."""
        if self.emulated:
            return to_grid(x, self.dtype)
        return x.astype(self.storage, copy=False)

    def add(self, a: Array, b: Array) -> Array:
        """a + b, rounded once."""
        return self.cast(a + b)

    def mul(self, a: Array, b: Array) -> Array:
        """a · b, rounded once."""
        return self.cast(a * b)

    def matmul(self, a: Array, b: Array) -> Array:
        """a @ b accumulated wide, rounded once. Both operands are of this model's storage type."""
        if self.storage != self.wide_dtype:  # CuPy 14.2 has no batched bfloat16 product
            a, b = self.wide(a), self.wide(b)
        return self.cast(self.xp.matmul(a, b))

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """x (…, in) @ weightᵀ (out, in) + bias (out,), rounded once, as a linear layer with a fused bias."""
        rows = x.reshape(-1, x.shape[-1])  # one large product instead of one per batch row
        y = self._product(rows, self.weight(weight).T)
        y = self.cast(y if bias is None else y + self.weight(bias))
        return y.reshape(*x.shape[:-1], weight.shape[0])

    def _product(self, rows: Array, matrix: Array) -> Array:
        cuts = np.linspace(0, rows.shape[1], min(self.profile.split, rows.shape[1]) + 1).astype(int)
        parts = [rows[:, a:b] @ matrix[a:b] for a, b in pairwise(cuts)]
        return sum(parts[1:], parts[0])


def unit_roundoff(dtype: str) -> float:
    """2⁻⁵³, 2⁻²⁴, 2⁻¹¹ or 2⁻⁸: half an ulp of 1 in `dtype`."""
    return {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]


def to_grid(x: Array, dtype: str) -> Array:
    """The float32 array of `x` rounded once to nearest even in `dtype`; the type itself for float32 and float64."""
    if dtype in HALF:
        if dtype == "bfloat16" and x.dtype == np.float64:
            x = to_odd(x)
        with np.errstate(over="ignore"):  # beyond float16 is infinity, as on hardware
            return x.astype(HALF[dtype]).astype(np.float32)
    return x.astype(dtype, copy=False)


def to_odd(x: Array) -> Array:
    """float64 to float32, an inexact value to its odd neighbour: ml_dtypes goes to bfloat16 by way of float32, and two
    roundings to nearest are not one (1 + 2⁻⁸ + 2⁻⁴⁰ becomes 1). Source: Boldo and Melquiond, 2008."""
    y = np.asarray(x.astype(np.float32))
    y = np.where(np.abs(y) > np.abs(x), np.nextafter(y, np.float32(0)), y)  # truncated
    return (y.view(np.uint32) | (np.isfinite(x) & (y != x))).view(np.float32)
