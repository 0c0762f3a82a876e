"""The four number types: their names, their unit roundoff, and rounding to the grid of a half type."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np  # before what needs it: where it is missing, its name is told

# isort: split
import ml_dtypes

Array = Any
DType = Literal["float64", "float32", "bfloat16", "float16"]
DTYPES: tuple[DType, ...] = ("float64", "float32", "bfloat16", "float16")
RUN_IN: tuple[DType, ...] = ("float32", "bfloat16", "float16")
"""The types that an implementation runs in; float64 is the oracle's."""
HALF = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
"""The half types, and what NumPy knows them by."""
WIDER: dict[str, tuple[str, ...]] = {"float64": ("float32", *HALF), "float32": tuple(HALF), **dict.fromkeys(HALF, ())}
"""A type → those whose every number it has."""
LOST = np.uint64((1 << 29) - 1)
"""The bits of a float64 that float32 has no room for."""
SUBNORMAL = np.uint64(((1023 - 126) << 53) - 1)
"""2⁻¹²⁶, float32's smallest normal number, as the bits of a float64 without its sign, less one."""


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
    bits = np.asarray(x).view(np.uint64)
    beyond = bits & LOST  # what float32 has no room for; it also keeps a NaN from becoming an infinity
    with np.errstate(over="ignore"):
        y = np.asarray((bits ^ beyond).view(np.float64).astype(np.float32))  # truncated, unless it is subnormal
    odd = (y.view(np.uint32) | (beyond != 0)).view(np.float32)
    small, large = (bits << 1) - 1 < SUBNORMAL, np.isinf(y)  # without the sign; 0 becomes the largest
    if small.any():
        odd = np.where(small, _subnormal_to_odd(x), odd)
    if large.any():  # the largest number is odd
        odd = np.where(large & np.isfinite(x), np.copysign(np.finfo(np.float32).max, y), odd)
    return odd


def _subnormal_to_odd(x: Array) -> Array:
    """`to_odd` where float32 has fewer bits: in steps of its smallest number."""
    steps = np.where(np.abs(x) < 2.0**-126, x, 0.0) * 2.0**149
    whole = np.trunc(steps)
    return np.asarray(((whole + np.sign(steps) * ((whole != steps) & (whole % 2 == 0))) * 2.0**-149).astype(np.float32))
