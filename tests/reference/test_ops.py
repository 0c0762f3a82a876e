"""ops: norms, activation, softcap and softmax against mpmath at 50 digits, at the edges too, and in the half types.

u is the unit roundoff; first-order error bounds are derived above the assertions that use them.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from helpers import (
    HALF,
    ROUNDOFF,
    U32,
    U64,
    Array,
    close,
    exact,
    frozen,
    normal,
    on_grid,
    precisely,
    rounded,
    same_bits,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from t5g2ref.numerics import EAGER, SDPA, Numerics
from t5g2ref.ops import gelu_tanh, layer_norm, masked_softmax, rms_norm, softcap

NX = {name: Numerics(name) for name in ("float64", "float32", "bfloat16", "float16")}  # type: ignore[arg-type]
WIDE = ["float64", "float32"]
HALVES = ["bfloat16", "float16"]
EPS = 2e-3
WIDTH = 7

# A row each: ordinary; all zero; 1e5 in one channel, as the bos token's residual has it (FACTS); tiny; alternating;
# one channel alone; a constant, whose variance is 0.
ROWS = frozen(
    [
        [0.3, -1.7, 2.2, 0.01, -0.6, 1.1, 4.0],
        [0.0] * 7,
        [1e5, -1.0, 0.5, 2.0, -3.0, 0.1, 1.0],
        [1e-30, -2e-30, 3e-30, 1e-31, 0.0, 5e-30, -1e-30],
        [1e3, -1e3, 1e3, -1e3, 1e3, -1e3, 1e3],
        [0.0, 0.0, 0.0, 1e-3, 0.0, 0.0, 0.0],
        [2.5] * 7,
    ],
    "float32",
)
WEIGHT = frozen([-0.9, 0.0, 0.5, 1700.0, -3.0, 0.25, 1e-3], "float32")  # up to 1.7e3, as the releases have (FACTS)
BIAS = frozen([0.1, -0.2, 0.0, 3.0, 1e-3, -40.0, 2.0], "float32")


def exact_rms_norm(row: list[Any], weight: list[Any], eps: float) -> list[Any]:
    root = mp.sqrt(mp.fsum(v * v for v in row) / len(row) + mp.mpf(eps))
    return [v / root * (1 + w) for v, w in zip(row, weight, strict=True)]


def exact_layer_norm(row: list[Any], weight: list[Any], bias: list[Any], eps: float) -> list[Any]:
    mean = mp.fsum(row) / len(row)
    root = mp.sqrt(mp.fsum((v - mean) ** 2 for v in row) / len(row) + mp.mpf(eps))
    return [(v - mean) / root * w + b for v, w, b in zip(row, weight, bias, strict=True)]


def over_rows(function: Any, rows: Array, *rest: Any) -> Array:
    with mp.workdps(50):
        return precisely(lambda row: function(row, *rest), rows)


# RMSNorm


@pytest.mark.parametrize("dtype", WIDE)
def test_rms_norm(dtype: Any) -> None:
    # Broken by a missing + 1 (the weight of 0 would blank its channel), eps outside the root, a sum for a mean.
    found = rms_norm(NX[dtype], ROWS.astype(dtype), WEIGHT.astype(dtype), EPS)
    expected = over_rows(exact_rms_norm, ROWS, exact(WEIGHT), EPS)
    # D squares, D − 1 additions, the division, eps and its own rounding: (D + 3) u, halved by the root; root, its
    # reciprocal, 1 + w and two products: 5 u more. All terms are positive, so nothing cancels: it is relative.
    close(found, expected, rtol=1.01 * ((WIDTH + 3) / 2 + 5) * ROUNDOFF[dtype], dtype=dtype)


def test_rms_norm_literals() -> None:
    # By hand: x = (3, 4), mean square 12.5, eps 3.5, root 4: x / 4 · (1 + w) with w = (0, 1).
    found = rms_norm(NX["float64"], frozen([3.0, 4.0]), frozen([0.0, 1.0]), 3.5)
    assert found.tolist() == [0.75, 2.0]


@pytest.mark.parametrize("dtype", HALVES)
def test_rms_norm_in_a_half_type_is_the_wide_result_rounded_once(dtype: Any) -> None:
    x, w = (frozen(rounded(normal(n, *s, dtype="float32"), dtype)) for n, s in (("x", (40, 64)), ("w", (64,))))
    found = rms_norm(NX[dtype], x, w, EPS)
    wide = rms_norm(NX["float32"], x, w, EPS)
    same_bits(found, rounded(wide, dtype))
    # The test can tell the known wrong ways: D12 casts before the factor, D11 forms 1 + w in the half type.
    normed = rms_norm(NX["float32"], x, np.zeros_like(w), EPS)
    assert (rounded(rounded(normed, dtype) * (1 + w), dtype) != found).any()
    assert (rounded(normed * rounded(1 + w, dtype), dtype) != found).any()


@given(hnp.arrays(np.float64, (3, 8), elements=st.floats(-1e3, 1e3)), st.floats(0.01, 100.0))
def test_rms_norm_does_not_see_the_scale_of_its_input(x: Array, factor: float) -> None:
    # eps scales with the square: norm(c x, c² eps) = norm(x, eps). Each side has at most (D + 3) / 2 + 5 < 11 u, the
    # scaling adds u for c x and 1.5 u for c² eps; values below 1e-150 are left out, whose squares vanish.
    x = np.where(np.abs(x) < 1e-150, 0.0, x)
    weight = np.linspace(-0.5, 0.5, 8)
    one = rms_norm(NX["float64"], frozen(x), weight, EPS)
    other = rms_norm(NX["float64"], frozen(factor * x), weight, factor * factor * EPS)
    close(other, one, rtol=30 * U64)


# LayerNorm


@pytest.mark.parametrize("dtype", WIDE)
def test_layer_norm(dtype: Any) -> None:
    # Broken by the unbiased variance (7 / 6), a missing mean, bias or eps; the constant row must be its bias.
    u = ROUNDOFF[dtype]
    found = layer_norm(NX[dtype], ROWS.astype(dtype), WEIGHT.astype(dtype), BIAS.astype(dtype), EPS)
    expected = over_rows(exact_layer_norm, ROWS, exact(WEIGHT), exact(BIAS), EPS)
    # x − mean cancels: its error is (D + 1) u max|x| =: δ. With σ = √(var + eps), |x − mean| ≤ √D σ, and √var moving
    # by at most δ, the quotient is off by δ / σ · (1 + √D) + √D ((D + 3) / 2 + 4) u; then · weight + bias adds 2 u.
    x = ROWS.astype(np.float64)
    sigma = np.sqrt(x.var(axis=1, keepdims=True) + EPS)
    delta = (WIDTH + 1) * u * np.abs(x).max(axis=1, keepdims=True)
    quotient = delta / sigma * (1 + math.sqrt(WIDTH)) + math.sqrt(WIDTH) * ((WIDTH + 3) / 2 + 4) * u
    bound = 1.01 * (quotient + 2 * u * math.sqrt(WIDTH)) * np.abs(WEIGHT) + 2 * u * np.abs(BIAS)
    close(found, expected, atol=bound, dtype=dtype)


def test_layer_norm_literals() -> None:
    # By hand: x = (1, 3, 5, 7), mean 4, var (9 + 1 + 1 + 9) / 4 = 5, eps 4, root 3: (−1, −1/3, 1/3, 1) · 3 + 10.
    found = layer_norm(NX["float64"], frozen([1.0, 3, 5, 7]), frozen([3.0] * 4), frozen([10.0] * 4), 4.0)
    close(found, np.array([7.0, 9.0, 11.0, 13.0]), rtol=4 * U64)  # 1/3 and a reciprocal are rounded


@pytest.mark.parametrize("dtype", HALVES)
def test_layer_norm_in_a_half_type_is_the_wide_result_rounded_once(dtype: Any) -> None:
    names = (("x", (40, 36)), ("w", (36,)), ("b", (36,)))
    x, w, b = (frozen(rounded(normal(n, *s, dtype="float32"), dtype)) for n, s in names)
    found = layer_norm(NX[dtype], x, w, b, EPS)
    same_bits(found, rounded(layer_norm(NX["float32"], x, w, b, EPS), dtype))


# GELU


def exact_gelu(row: list[Any]) -> list[Any]:
    return [v / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (v + mp.mpf("0.044715") * v**3))) for v in row]


GELU_POINTS = frozen([0.0, 1e-30, -1e-30, 1e-3, 0.5, -0.5, 1.0, -1.0, 2.5, -2.5, -4.0, 8.0, -8.0, 1e5, -1e5], "float32")


@pytest.mark.parametrize("dtype", WIDE)
def test_gelu_tanh(dtype: Any) -> None:
    found = gelu_tanh(NX[dtype], GELU_POINTS.astype(dtype))
    expected = over_rows(exact_gelu, GELU_POINTS)
    # The argument t of tanh has 7 roundings (two constants, five operations; both terms have one sign), and
    # |t| sech² t ≤ 0.45: 3.2 u in tanh, whose own error is at most 4 ulp ≤ 4 u below 1. 1 + tanh cancels for negative
    # x, so the error is absolute: |x| / 2 · (7.2 + 2) u, and two products, 2 u |y| ≤ 2 u |x|.
    close(found, expected, atol=1.01 * 7 * ROUNDOFF[dtype] * np.abs(GELU_POINTS.astype(np.float64)), dtype=dtype)


def test_gelu_tanh_literals() -> None:
    # mpmath 1.3, 50 digits: x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) at 1, −1 and 3.
    expected = [0.84119199060827670, -0.15880800939172330, 2.99636260791822698]
    close(gelu_tanh(NX["float64"], frozen([1.0, -1.0, 3.0])), np.array(expected), atol=7 * U64 * 3)


def test_gelu_tanh_is_not_the_erf_form() -> None:
    # The docstring's 4.7e-4 (D52). math.erf is within an ulp; a grid of 1e-3 finds the largest difference to 1e-9.
    x = np.arange(-6, 6, 1e-3)
    erf = np.array([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    assert 4.65e-4 < np.abs(gelu_tanh(NX["float64"], frozen(x)) - erf).max() < 4.75e-4


@pytest.mark.parametrize("dtype", HALVES)
def test_gelu_tanh_in_a_half_type_is_the_wide_result_rounded_once(dtype: Any) -> None:
    x = frozen(rounded(normal("gelu", 2000, scale=3.0, dtype="float32"), dtype))
    same_bits(gelu_tanh(NX[dtype], x), rounded(gelu_tanh(NX["float32"], x), dtype))


# Softcap


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("cap", [30.0, 0.7])
def test_softcap(dtype: Any, cap: float) -> None:
    points = frozen([0.0, 1e-30, 0.1, -0.1, 5.0, -29.0, 31.0, 1e5, -1e5], "float32")
    found = softcap(NX[dtype], points.astype(dtype), cap)
    expected = over_rows(lambda row: [mp.mpf(cap) * mp.tanh(v / mp.mpf(cap)) for v in row], points)
    # The quotient and cap's own rounding: 2 u, and tanh does not magnify a relative error; its own 4 ulp are 8 u at
    # most; the product and cap again: 2 u. All relative.
    close(found, expected, rtol=1.01 * 12 * ROUNDOFF[dtype], dtype=dtype)
    assert (np.abs(found) <= np.float64(cap).astype(dtype)).all()


def test_no_softcap_is_no_operation() -> None:
    x = normal("softcap", 3)
    assert softcap(NX["float64"], x, None) is x


@pytest.mark.parametrize("dtype", HALVES)
def test_softcap_in_a_half_type_rounds_each_step(dtype: Any) -> None:
    # As torch on a half tensor: quotient, tanh and product are tensors of their own.
    x = frozen(rounded(normal("capped", 2000, scale=40.0, dtype="float32"), dtype))
    cap = np.float32(30.0)
    steps = rounded(np.tanh(rounded(x / cap, dtype)), dtype)
    same_bits(softcap(NX[dtype], x, 30.0), rounded(steps * cap, dtype))
    assert (rounded(cap * np.tanh(x / cap), dtype) != rounded(steps * cap, dtype)).any(), "one rounding would do"


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


# Everywhere


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_every_operation_stays_on_its_grid_and_in_its_type(dtype: Any) -> None:
    nx, x = NX[dtype], frozen(rounded(ROWS, dtype) if dtype != "float16" else np.clip(ROWS, -6e4, 6e4))
    x = frozen(rounded(x, dtype))
    w = frozen(rounded(WEIGHT / 1e3, dtype))
    for found in (
        rms_norm(nx, x, w, EPS),
        layer_norm(nx, x, w, w, EPS),
        gelu_tanh(nx, x),
        softcap(nx, x, 30.0),
        masked_softmax(nx, x, None),
    ):
        assert found.dtype == np.float32
        assert found.shape == x.shape
        assert on_grid(found, dtype)


def test_float32_differs_from_float64_by_its_own_roundoff() -> None:
    # The two runs are really two precisions: the difference is there, and below the sum of the bound above.
    x, w = normal("two", 50, WIDTH, dtype="float32"), WEIGHT
    wide = rms_norm(NX["float64"], x.astype("float64"), w, EPS)
    narrow = rms_norm(NX["float32"], x, w, EPS)
    close(narrow, wide, rtol=1.01 * ((WIDTH + 3) / 2 + 5) * (U32 + U64), dtype="float32")
    assert (narrow != wide).any()
