"""ops: norms, activation and softcap against mpmath at 50 digits, at the edges too, and in the half types.

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

from t5g2ref.numerics import Numerics
from t5g2ref.ops import gelu_tanh, layer_norm, masked_softmax, rms_norm, softcap

NX = {name: Numerics(name) for name in ("float64", "float32", "bfloat16", "float16")}  # type: ignore[arg-type]
WIDE = ["float64", "float32"]
HALVES = ["bfloat16", "float16"]
EPS = 2e-3
WIDTH = 7

# A row each: ordinary; all zero; 1e5 in one channel, as the bos token's residual has it; tiny; alternating;
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
WEIGHT = frozen([-0.9, 0.0, 0.5, 1700.0, -3.0, 0.25, 1e-3], "float32")  # up to 1.7e3, as the releases have
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
