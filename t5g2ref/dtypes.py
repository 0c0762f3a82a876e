"""The four number types: their names, their unit roundoff, and rounding to the grid of a half type."""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np

Array = Any
DType = Literal["float64", "float32", "bfloat16", "float16"]
DTYPES: tuple[DType, ...] = ("float64", "float32", "bfloat16", "float16")
RUN_IN: tuple[DType, ...] = ("float32", "bfloat16", "float16")
"""The types that an implementation runs in; float64 is the oracle's."""
HALF = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
"""The half types, and what NumPy knows them by."""


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
