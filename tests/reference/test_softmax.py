"""The masked softmax against mpmath at 50 digits, at the edges too, and in the half types.

u is the unit roundoff; first-order error bounds are derived above the assertions that use them.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from helpers import (
    ROUNDOFF,
    U64,
    Array,
    close,
    exact,
    frozen,
    normal,
    on_grid,
    rounded,
    same_bits,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from t5g2ref.numerics import EAGER, SDPA, Numerics
from t5g2ref.ops import masked_softmax

NX = {name: Numerics(name) for name in ("float64", "float32", "bfloat16", "float16")}  # type: ignore[arg-type]
WIDE = ["float64", "float32"]
HALVES = ["bfloat16", "float16"]


# Softmax

SCORES = frozen(
    [
        [0.1, -2.0, 3.5, 0.0, 1.0],
        [-1e5, -2e5, -1e5, -3e5, -1.5e5],
        [1e5, 1e5, -1e5, 0.0, 1e5],
        [-1e-30, 1e-30, 0.0, 2e-30, 0.0],
        [700.0, -700.0, 0.0, 1.0, 650.0],
        [2.0, 2.0, 2.0, 2.0, 2.0],
    ],
    "float32",
)
ALLOWED = frozen(
    [
        [True, False, False, True, True],
        [False, True, False, True, False],
        [False, False, True, True, False],
        [True, True, True, True, True],
        [False, True, True, False, False],
        [False, False, False, False, True],
    ]
)


def exact_softmax(scores: Array, allowed: Array) -> Array:
    with mp.workdps(50):
        rows = []
        for row, keep in zip(scores, allowed, strict=True):
            weights = [mp.exp(v) if k else mp.mpf(0) for v, k in zip(exact(row), keep, strict=True)]
            total = mp.fsum(weights)
            rows.append([float(v / total) if total else 0.0 for v in weights])
    return np.array(rows)


def softmax_bound(scores: Array, u: float) -> float:
    """s − top is rounded to u |s − top|, which exp makes relative; exp itself has 2 u; so have the S terms of the sum,
    which adds S − 1 roundings; then the quotient. Below exp(−90) a float32 weight is subnormal: see `tiny`."""
    spread = float(min(scores.max() - scores.min(), 745.0))  # beyond it every weight is 0
    return 1.01 * (2 * (spread + 2) + scores.shape[-1]) * u


@pytest.mark.parametrize("allowed", [None, ALLOWED], ids=["all", "some"])
@pytest.mark.parametrize("dtype", WIDE)
def test_masked_softmax(dtype: Any, allowed: Array | None) -> None:
    # Broken by exp without the top taken off (overflow at 1e5 is an error here), by a finite "minus infinity" that is
    # above a real score of −2e5, by a top taken over what is masked (all allowed weights would vanish).
    found = masked_softmax(NX[dtype], SCORES.astype(dtype), allowed)
    expected = exact_softmax(SCORES, np.ones_like(ALLOWED) if allowed is None else allowed)
    tiny = {"float64": 5e-324, "float32": 1.5e-45}[dtype]  # the smallest subnormal: the error of a weight near 0
    for row in range(len(SCORES)):
        bound = softmax_bound(SCORES[row], ROUNDOFF[dtype])
        close(found[row], expected[row], rtol=bound, atol=4 * tiny, dtype=dtype)
    if allowed is not None:
        assert (found[~allowed] == 0).all()


def test_masked_softmax_literals() -> None:
    # By hand: exp(0), exp(ln 2), exp(ln 3) are 1 : 2 : 3. Without the last, 1 : 2.
    scores = frozen([math.log(1), math.log(2), math.log(3)])
    close(masked_softmax(NX["float64"], scores, None), np.array([1 / 6, 2 / 6, 3 / 6]), rtol=12 * U64)
    found = masked_softmax(NX["float64"], scores, frozen([True, True, False]))
    close(found, np.array([1 / 3, 2 / 3, 0.0]), rtol=12 * U64)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_row_with_nothing_allowed_is_zeros(dtype: Any) -> None:
    # Broken by 0 / 0 and by −inf − −inf: both warn, and a warning is an error. The other row is not disturbed.
    allowed = frozen([[False] * 5, [True] * 5])
    found = masked_softmax(NX[dtype], SCORES[:2].astype(NX[dtype].storage), allowed)
    assert found[0].tolist() == [0.0] * 5
    assert abs(float(found[1].sum()) - 1) <= 5 * ROUNDOFF[dtype]  # each weight at most 1, each rounded once


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_allowed_is_not_read(poison: float) -> None:
    # Broken by a mask that multiplies or adds: NaN · 0 is NaN and 1e300 − 1e9 wins.
    poisoned = np.where(ALLOWED, SCORES.astype("float64"), poison)
    clean = masked_softmax(NX["float64"], SCORES.astype("float64"), ALLOWED)
    same_bits(masked_softmax(NX["float64"], frozen(poisoned), ALLOWED), clean)


def test_allowed_is_broadcast() -> None:
    scores = normal("scores", 2, 3, 4, 5)
    allowed = frozen(np.arange(20).reshape(1, 1, 4, 5) % 3 > 0)
    found = masked_softmax(NX["float64"], scores, allowed)
    same_bits(found, masked_softmax(NX["float64"], scores, np.broadcast_to(allowed, scores.shape)))


@pytest.mark.parametrize("profile", [SDPA, EAGER], ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", HALVES)
def test_masked_softmax_in_a_half_type_is_the_wide_result_rounded_once(dtype: Any, profile: Any) -> None:
    # Broken by exp or the sum in the half type (D51).
    scores = frozen(rounded(normal("half scores", 30, 40, scale=2.0, dtype="float32"), dtype))
    allowed = frozen(normal("half mask", 30, 40) > -0.5)
    found = masked_softmax(Numerics(dtype, profile), scores, allowed)
    same_bits(found, rounded(masked_softmax(NX["float32"], scores, allowed), dtype))
    assert on_grid(found, dtype)


@given(hnp.arrays(np.float64, (2, 6), elements=st.floats(-50, 50)), st.floats(-1000, 1000))
def test_softmax_does_not_see_a_shift_and_sums_to_one(scores: Array, shift: float) -> None:
    one = masked_softmax(NX["float64"], frozen(scores), None)
    # The shifted scores are rounded: |s| ≤ 1050 gives 1050 u in each exponent, twice (term and sum); see softmax_bound.
    close(masked_softmax(NX["float64"], frozen(scores + shift), None), one, rtol=2 * (1050 + 2 * 102 + 6) * U64)
    assert (one > 0).all()
    close(one.sum(axis=-1), np.ones(2), atol=12 * U64)  # S quotients and S − 1 additions of a sum of 1
