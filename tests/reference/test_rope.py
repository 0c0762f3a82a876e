"""rope: angles against mpmath far out, the rotation against complex numbers, and what makes it relative."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from helpers import DIGITS, ROUNDOFF, U32, U64, Array, close, frozen, normal, on_grid, rounded, same_bits
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref.config import Config, Rope
from t5g2ref.numerics import EXACT, SDPA, Numerics
from t5g2ref.rope import inverse_frequencies, rope_tables, rotate, tables
from t5g2ref.trace import recorder

ORACLE = Numerics("float64")
ROPES = {
    "released sliding": (Rope(10_000.0), 256),
    "released full": (Rope(1_000_000.0, 8.0), 256),
    "small": (Rope(777.0), 14),
    "small full": (Rope(52_000.0, 6.0), 10),
}
POSITIONS = frozen([[0, 1, 2, 511, 4096, 32_767, 131_071]])
CASES = pytest.mark.parametrize(("rope", "width"), list(ROPES.values()), ids=list(ROPES))


def exact_angles(rope: Rope, width: int, positions: Array) -> Any:
    """position · theta^(−2i/H) / factor in mpmath: rows of positions, columns of the H / 2 planes."""
    with mp.workdps(DIGITS):
        frequencies = [mp.mpf(rope.theta) ** (mp.mpf(-2 * i) / width) / mp.mpf(rope.factor) for i in range(width // 2)]
        return [[int(p) * f for f in frequencies] for p in positions.ravel()]


def exact_tables(rope: Rope, width: int, positions: Array) -> tuple[Array, Array]:
    """cos and sin (B, T, H), the second half repeating the first."""
    with mp.workdps(DIGITS):
        angles = exact_angles(rope, width, positions)
        cos = np.array([[float(mp.cos(a)) for a in row] * 2 for row in angles])
        sin = np.array([[float(mp.sin(a)) for a in row] * 2 for row in angles])
    shape = (*positions.shape, width)
    return cos.reshape(shape), sin.reshape(shape)


def angle_bound(rope: Rope, width: int, positions: Array, u: float) -> Array:
    """First-order error of an angle (B, T, H). The exponent 2i/H is rounded, which theta^x turns into a relative error
    of ln(theta) u; the power has 2 u of its own, its reciprocal, the factor and the product with the position u each,
    and theta and factor as float32 another u each."""
    angles = np.array([[float(a) for a in row] * 2 for row in exact_angles(rope, width, positions)])
    return 1.01 * (np.log(rope.theta) + 7) * u * angles.reshape(*positions.shape, width)


# Angles


@CASES
def test_tables_at_far_positions(rope: Rope, width: int) -> None:
    # Broken by exchanged or hard-coded thetas, a factor left out, twice or on the wrong layers, 2i/H for i/H.
    found = tables(ORACLE, rope, width, POSITIONS)
    expected = exact_tables(rope, width, POSITIONS)
    bound = angle_bound(rope, width, POSITIONS, U64) + 2 * U64  # cos and sin move no faster; each is within an ulp
    for actual, wanted in zip(found, expected, strict=True):
        close(actual, wanted, atol=bound)


@CASES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_float32_angles_are_off_by_no_more_than_their_roundings(rope: Rope, width: int, dtype: Any) -> None:
    # The peers' angle: every step in float32. Near 131071 that is up to 0.015 radians, and no defect (D27 is one in
    # bfloat16: 256 times as much, from position 20 on).
    found = tables(Numerics(dtype, SDPA), rope, width, POSITIONS)
    expected = exact_tables(rope, width, POSITIONS)
    bound = angle_bound(rope, width, POSITIONS, U32) + 4 * U32 + (ROUNDOFF[dtype] if dtype != "float32" else 0)
    for actual, wanted in zip(found, expected, strict=True):
        close(actual, wanted, atol=bound, dtype="float32")
        assert on_grid(actual, dtype)


@CASES
def test_the_profile_says_whether_angles_are_exact(rope: Rope, width: int) -> None:
    # Both ways, in float32 and in float64: the profile is read, and the angle alone differs.
    for dtype in ("float64", "float32"):
        exactly, peers = (tables(Numerics(dtype, p), rope, width, POSITIONS) for p in (EXACT, SDPA))  # type: ignore[arg-type]
        wide = exact_tables(rope, width, POSITIONS)
        last = ROUNDOFF[dtype] + angle_bound(rope, width, POSITIONS, U64) + 2 * U64  # cast, and the float64 steps
        for found, other, wanted in zip(exactly, peers, wide, strict=True):
            close(found, wanted, atol=last, dtype=dtype)
            assert np.abs(other - found).max() > 100 * U32, "the float32 profile is as good as the exact one"


def test_frequencies_literals() -> None:
    # theta 10⁴ and H = 4: 10⁴^0 = 1 and 10⁴^(−1/2) = 1/100; theta 10⁶, factor 8: 1/8 and 1/8000. By hand.
    close(
        inverse_frequencies(ORACLE, Rope(1e4), 4, POSITIONS), np.array([1.0, 0.01]), rtol=4 * U64
    )  # power, reciprocal, quotient
    close(inverse_frequencies(ORACLE, Rope(1e6, 8.0), 4, POSITIONS), np.array([0.125, 1 / 8000]), rtol=4 * U64)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@CASES
def test_position_0_is_the_identity(rope: Rope, width: int, dtype: Any) -> None:
    nx = Numerics(dtype)
    x = frozen(rounded(normal("x", 2, 3, 1, width), dtype))
    same_bits(rotate(nx, x, *tables(nx, rope, width, frozen([[0], [0]]))), x)


# The rotation


def complex_rotation(x: Array, angles: Array) -> Array:
    """x (B, N, T, H) with angles (B, T, H/2): plane i is the complex number x[i] + 1j x[i + H/2], turned by its angle.
    One number at a time."""
    out, half = np.empty_like(x), x.shape[-1] // 2
    for b, n, t in np.ndindex(*x.shape[:3]):
        for i in range(half):
            turned = complex(x[b, n, t, i], x[b, n, t, i + half]) * complex(
                mp.mpc(mp.cos(angles[b, t, i]), mp.sin(angles[b, t, i]))
            )
            out[b, n, t, i], out[b, n, t, i + half] = turned.real, turned.imag
    return out


def planes(x: Array) -> Array:
    """Length of each plane's two elements, repeated for both."""
    half = x.shape[-1] // 2
    return np.tile(np.hypot(x[..., :half], x[..., half:]), 2)


def test_rotation_is_half_split_and_of_each_row_by_its_own_position() -> None:
    # Broken by interleaved pairs (D26), by a turn the other way, by one row's table for all rows.
    rope, width, positions = Rope(777.0), 14, frozen([[0, 1, 5], [40, 7, 2]])
    x = normal("q", 2, 3, 3, width)
    angles = np.array(exact_angles(rope, width, positions)).reshape(2, 3, width // 2)
    expected = complex_rotation(x, angles)
    found = rotate(ORACLE, x, *tables(ORACLE, rope, width, positions))
    # Two products and their sum here and in Python's complex product: 2 · 3 u of each plane's length, and the tables.
    slack = 6 * U64 + 2 * (angle_bound(rope, width, positions, U64) + 2 * U64)[:, None]
    close(found, expected, atol=slack * planes(x))


def test_rotation_literal() -> None:
    # By hand: H = 4, planes (1, 3) and (2, 4), a quarter turn of the first: (1, 3) → (−3, 1).
    cos, sin = frozen([[[0.0, 1.0, 0.0, 1.0]]]), frozen([[[1.0, 0.0, 1.0, 0.0]]])
    assert rotate(ORACLE, frozen([[[[1.0, 2.0, 3.0, 4.0]]]]), cos, sin).tolist() == [[[[-3.0, 2.0, 1.0, 4.0]]]]


def test_rotation_keeps_the_length_of_every_plane() -> None:
    x = normal("length", 1, 2, 7, 256)
    turned = rotate(ORACLE, x, *tables(ORACLE, Rope(1e6, 8.0), 256, POSITIONS))
    # cos² + sin² is 1 to 4 u (each within 2 u), the products and sums add 3 u, hypot 2 u on each side.
    close(planes(turned), planes(x), rtol=12 * U64)


@given(st.integers(0, 4000), st.integers(0, 4000), st.integers(0, 4000))
def test_a_score_depends_on_the_distance_alone(m: int, n: int, shift: int) -> None:
    rope, width = Rope(31_000.0, 4.0), 14
    q, k = normal("relative q", 1, 1, 1, width), normal("relative k", 1, 1, 1, width)

    def score(at_q: int, at_k: int) -> float:
        turned = [rotate(ORACLE, x, *tables(ORACLE, rope, width, frozen([[p]]))) for x, p in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    # Four tables with their angles' errors up to position 8000, and the roundings of the sum of H products.
    largest = float(angle_bound(rope, width, frozen([[8000]]), U64).max())
    slack = (4 * (largest + 2 * U64) + (width + 6) * 2 * U64) * float(planes(q).ravel() @ planes(k).ravel())
    close(score(m + shift, n + shift), score(m, n), atol=slack)


def test_a_score_does_depend_on_the_distance() -> None:
    # The property above would hold of no rotation at all.
    rope, width = Rope(31_000.0, 4.0), 14
    q, k = normal("relative q", 1, 1, 1, width), normal("relative k", 1, 1, 1, width)
    scores = [float((q * rotate(ORACLE, k, *tables(ORACLE, rope, width, frozen([[p]])))).sum()) for p in range(4)]
    assert min(abs(a - b) for i, a in enumerate(scores) for b in scores[:i]) > 1e-3


def test_linear_factor_divides_the_position() -> None:
    # Position 24 under factor 8 is position 3 without: exact, since 8 is a power of two.
    with_factor = tables(ORACLE, Rope(1e6, 8.0), 256, frozen([[24]]))
    without = tables(ORACLE, Rope(1e6), 256, frozen([[3]]))
    for a, b in zip(with_factor, without, strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rotation_in_a_half_type_rounds_products_and_sum(dtype: Any) -> None:
    # As torch: x · cos and rotated · sin are tensors of their own, then their sum is.
    nx = Numerics(dtype, SDPA)
    x = frozen(rounded(normal("half q", 1, 2, 4, 10), dtype))
    cos, sin = tables(nx, Rope(777.0), 10, frozen([[3, 1, 60, 2]]))
    turned = np.concatenate([-x[..., 5:], x[..., :5]], axis=-1)
    expected = rounded(rounded(x * cos[:, None], dtype) + rounded(turned * sin[:, None], dtype), dtype)
    same_bits(rotate(nx, x, cos, sin), expected)


# A stack's tables


def test_a_stack_has_one_table_for_each_layer_type_it_has(config: Config) -> None:
    positions = frozen(np.arange(9)[None])
    found = rope_tables(ORACLE, config.encoder, positions, recorder(seen := {}))
    assert set(found) == {"sliding_attention", "full_attention"}
    for kind, rope in (("sliding_attention", Rope(777.0)), ("full_attention", Rope(31_000.0, 4.0))):
        expected = exact_tables(rope, 14, positions)
        bound = angle_bound(rope, 14, positions, U64) + 2 * U64  # as above
        for part, actual, wanted in zip(("cos", "sin"), found[kind], expected, strict=True):
            close(actual, wanted, atol=bound)
            assert seen[f"rotary_emb.{kind}.{part}"] is actual
    only = replace(config.encoder, num_hidden_layers=1, layer_types=("full_attention",))
    assert list(rope_tables(ORACLE, only, positions)) == ["full_attention"]
