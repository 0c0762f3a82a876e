"""What the tests share: a comparison that a NaN cannot pass, read-only inputs, seeded numbers, and mpmath's view."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import mpmath as mp
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

U64 = 2.0**-53  # unit roundoff of float64: the largest relative error of one operation
U32 = 2.0**-24  # of float32
ROUNDOFF = {"float64": U64, "float32": U32, "float16": 2.0**-11, "bfloat16": 2.0**-8}
HALF = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
DIGITS = 50  # of every mpmath expectation


def close(actual: Any, expected: Any, *, rtol: float = 0.0, atol: Any = 0.0, dtype: str | None = None) -> None:
    """Assert |actual − expected| ≤ atol + rtol · |expected| everywhere, after shape, dtype and finiteness.

    `atol` may be an array of bounds; `dtype` is the one that `actual` must have where the expectation is kept in a
    wider one. Without tolerances the values must be equal. A NaN fails: it is not finite, and `<=` is false for it.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == np.dtype(dtype or expected.dtype), (
        f"dtype {actual.dtype}, expected {dtype or expected.dtype}"
    )
    assert actual.size, "an empty comparison proves nothing"
    assert np.isfinite(expected).all(), "the expectation itself is not finite"
    assert np.isfinite(actual).all(), f"{int((~np.isfinite(actual)).sum())} values are not finite"
    wide = expected.astype(np.float64)
    error, bound = np.abs(actual.astype(np.float64) - wide), atol + rtol * np.abs(wide)
    inside = error <= bound
    if not inside.all():
        excess = np.where(inside, -np.inf, error - bound)
        at = np.unravel_index(int(excess.argmax()), excess.shape)
        limit = np.broadcast_to(bound, error.shape)[at]
        raise AssertionError(
            f"{int((~inside).sum())} of {inside.size} values are off; at {tuple(map(int, at))}: found {actual[at]!r}, "
            f"expected {expected[at]!r}, error {error[at]:.3g} > {limit:.3g}"
        )


def same_bits(actual: Any, expected: Any) -> None:
    """Assert equality in shape, dtype and every bit (so −0 is not 0); NaN is refused."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert not np.isnan(actual).any(), "NaN"
    assert actual.tobytes() == expected.tobytes(), f"{int((actual != expected).sum())} of {actual.size} values differ"


def frozen(value: Any, dtype: Any = None) -> Array:
    """A read-only copy: code under test that writes into its arguments raises."""
    array = np.array(value, dtype=dtype)
    array.flags.writeable = False
    return array


def generator(name: str) -> np.random.Generator:
    """The same numbers for the same name, on every machine and in any order of tests."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def normal(name: str, *shape: int, scale: float = 1.0, dtype: str = "float64") -> Array:
    """Read-only standard normal numbers times `scale`, seeded by name."""
    return frozen(generator(name).normal(size=shape) * scale, dtype)


def rounded(x: Any, dtype: str) -> Array:
    """float32 (or wider) values rounded once to the type's grid, by ml_dtypes; float32 for the half types."""
    x = np.asarray(x)
    return x.astype(HALF[dtype]).astype(np.float32) if dtype in HALF else x.astype(dtype)


def on_grid(x: Any, dtype: str) -> bool:
    """True where every value of `x` is one of the type's; NaN is none."""
    x = np.asarray(x)
    return bool((rounded(x, dtype) == x).all())


def precisely(function: Callable[..., Any], *arrays: Any) -> Array:
    """`function` of the arrays' rows in mpmath at 50 digits, rounded once to float64.

    The function takes one list of mpf an array (the last axis) and returns a list; leading axes are walked.
    """
    with mp.workdps(DIGITS):
        first = np.asarray(arrays[0])
        rows = [
            [float(v) for v in function(*(exact(np.asarray(a)[at]) for a in arrays))]
            for at in np.ndindex(*first.shape[:-1])
        ]
    return np.array(rows, dtype=np.float64).reshape(*first.shape[:-1], -1)


def exact(row: Any) -> list[Any]:
    """Floats as mpf, which holds each of them exactly."""
    return [mp.mpf(float(v)) for v in row]
