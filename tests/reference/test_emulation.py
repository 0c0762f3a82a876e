"""The emulated half types are the real ones: `Numerics` on float32 arrays against ml_dtypes' and NumPy's own 16-bit
arithmetic, bit for bit.

test_numerics.py has the grid (every value, every tie and its neighbours, float64's single rounding against rational
numbers). Here: every pattern through every unary way, NaN and infinity, and the operations on pairs and sums.

What a sum is: `matmul`, `product` and `linear` accumulate in float32, in the order of NumPy's matmul (the profile
`running`: in cuts from left to right), and round once. Products of two bfloat16 or float16 numbers are exact in float32
(8 + 8 and 11 + 11 of 24 bits), so only the additions round on the way.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers import HALF, Array, frozen, generator
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref.dtypes import to_grid, to_odd
from t5g2ref.numerics import EAGER, RUNNING, SDPA, Numerics

PATTERNS = np.arange(1 << 16, dtype=np.uint16)
HALVES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
BITS = {"bfloat16": 8, "float16": 11}


def every(dtype: str) -> Array:
    """All 65536 numbers of a half type, as that type."""
    return PATTERNS.view(HALF[dtype])


def same(found: Array, expected: Array) -> None:
    """Emulated (float32) and native (16 bits): the same number to the bit, −0 and infinity included; NaN where NaN."""
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    wide = expected.astype(np.float32)
    nan = np.isnan(wide)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(found.view(np.uint32)[~nan], wide.view(np.uint32)[~nan])


def quiet() -> Any:
    return np.errstate(all="ignore")


# One number


@HALVES
def test_all_65536_come_back_as_they_are_by_every_way_in(dtype: Any) -> None:
    nx, native = Numerics(dtype), every(dtype)
    with quiet():
        wide = native.astype(np.float32)
        for found in (
            nx.array(native),
            nx.array(wide),
            nx.array(wide.astype(np.float64)),
            nx.weight(native),
            nx.cast(wide),
            nx.wide(nx.cast(wide)),
            to_grid(wide, dtype),
            to_grid(wide.astype(np.float64), dtype),
        ):
            same(found, native)
        back = nx.array(native).astype(HALF[dtype]).view(np.uint16)
    finite = ~np.isnan(wide)
    assert np.array_equal(back[finite], PATTERNS[finite])


@pytest.mark.parametrize("sweep", range(8))
@HALVES
def test_float32_around_every_half_number(dtype: Any, sweep: int) -> None:
    """Between two neighbours: a quarter, the tie, one float32 step on either side of it, three quarters and so on; and
    for bfloat16 all the exponents that float16 has not, down to float32's own subnormals."""
    low = np.sort(every(dtype).astype(np.float32)[: 0x7C00 if dtype == "float16" else 0x7F80])
    gap = np.diff(low.astype(np.float64), append=2 * float(low[-1]) - float(low[-2]))  # beyond the largest: overflow
    offset = (0.0, 0.25, 0.5, 0.5, 0.5, 0.75, 1 / 3, 1 / 1024)[sweep]
    with quiet():
        x = (low + gap * offset).astype(np.float32)
        x = np.nextafter(x, np.float32({3: 0, 4: np.inf}[sweep])) if sweep in (3, 4) else x
        for signed in (x, -x):
            same(Numerics(dtype).cast(frozen(signed)), signed.astype(HALF[dtype]))


@HALVES
def test_random_float32_patterns(dtype: Any) -> None:
    """A million of the 2³² there are: NaN of every kind, subnormals, what overflows."""
    x = generator("patterns").integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32)
    with quiet():
        same(Numerics(dtype).cast(x), x.astype(HALF[dtype]))


def test_the_end_of_the_range() -> None:
    """float16: 65504 is the largest, and 65520 the first that goes to infinity. bfloat16: half a step over its largest
    number 3.3895e38 is float32's 0x7f7f8000. Subnormals: float16's least is 2⁻²⁴, and half of it is a tie to 0."""
    half, brain = Numerics("float16"), Numerics("bfloat16")
    with quiet():
        assert half.cast(np.float32([65504, 65519, 65520, -65520])).tolist() == [65504, 65504, np.inf, -np.inf]
        ends = np.uint32([0x7F7F7FFF, 0x7F7F8000, 0xFF7F8000]).view(np.float32)
        assert brain.cast(ends).tolist() == [float.fromhex("0x1.fep127"), np.inf, -np.inf]
    assert half.cast(np.float32([2**-24, 2**-25, 3 * 2**-25, -(2**-25)])).tolist() == [2**-24, 0, 2**-23, 0]
    assert np.signbit(half.cast(np.float32([-(2**-25)])))[0], "to −0"
    assert brain.cast(np.float32([2**-133, 2**-134, 3 * 2**-134])).tolist() == [2**-133, 0, 2**-132]


# float64


def once(x: float, dtype: str) -> float:
    """x rounded once to nearest even, in rational numbers, subnormals and overflow included."""
    if x == 0 or not np.isfinite(x):
        return x
    info: Any = ml_dtypes.finfo(HALF[dtype])
    exponent = max(np.frexp(x)[1] - BITS[dtype], int(info.minexp) - BITS[dtype] + 1)
    step = Fraction(2) ** int(exponent)
    rounded = round(Fraction(x) / step) * step  # Fraction's round goes to even
    limit = Fraction(float(info.max))
    if abs(rounded) > limit:
        return float(np.copysign(np.inf, x))
    return float(np.copysign(float(abs(rounded)), x))


DOUBLES = st.floats(allow_nan=False, allow_infinity=False, width=64)


@HALVES
@given(x=DOUBLES)
def test_any_float64_is_rounded_once(dtype: Any, x: float) -> None:
    with quiet():
        same(to_grid(np.array([x]), dtype), np.array([once(x, dtype)]))


@HALVES
@given(pattern=st.integers(0, (1 << 16) - 1), part=st.integers(-3, 3), far=st.integers(25, 60))
def test_float64_a_hair_from_a_tie(dtype: Any, pattern: int, part: int, far: int) -> None:
    """Where two roundings are not one: half way between two neighbours, and a hair more or less."""
    low = np.uint16([pattern & 0x7FFF]).view(HALF[dtype]).astype(np.float64)
    high = np.uint16([(pattern & 0x7FFF) + 1]).view(HALF[dtype]).astype(np.float64)
    if not np.isfinite([*low, *high]).all():
        return
    middle = (low + high) / 2
    x = middle * (1 + part * 2.0**-far)
    for signed in (x, -x):
        same(to_grid(signed, dtype), np.array([once(float(signed[0]), dtype)]))


def test_two_roundings_are_not_one() -> None:
    """ml_dtypes goes from float64 to bfloat16 by way of float32, to nearest both times; `to_odd` mends that. NumPy's
    float16 is made in one step."""
    x = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 3 * 2.0**-8 - 2.0**-40])
    assert x.astype(ml_dtypes.bfloat16).tolist() == [1.0, 1.015625], "the trap is still there"
    assert to_grid(x, "bfloat16").tolist() == [1.0078125, 1.0078125]
    y = np.array([1 + 2.0**-11 + 2.0**-40])
    assert to_grid(y, "float16").tolist() == y.astype(np.float16).tolist() == [1 + 2.0**-10]


@given(x=DOUBLES)
def test_to_odd(x: float) -> None:
    """The value itself where float32 has it, else whichever of its two neighbours has an odd last bit."""
    with quiet():
        (found,) = to_odd(np.array([x]))
        exact = float(np.float32(x)) == x
    if exact:
        assert float(found) == x
        return
    assert int(np.float32(found).view(np.uint32)) & 1 or not np.isfinite(np.float32(found))
    with quiet():
        below, above = np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf))
    if np.isfinite(found):
        assert float(below) < x < float(above)


# Two numbers


def hard(dtype: str) -> Array:
    """Numbers at which something happens: both zeros, the subnormals' ends, ones with full mantissas, powers, the
    largest, infinity, NaN, and some by chance."""
    info: Any = ml_dtypes.finfo(HALF[dtype])
    steps = [0x0000, 0x0001, 0x0002, 0x0003, 0x007F, 0x0080, 0x0081, 0x03FF, 0x0400, 0x0401]
    one = int(np.array(1, HALF[dtype]).view(np.uint16))
    top = int(np.array(info.max, HALF[dtype]).view(np.uint16))
    around = [one + d for d in (-300, -129, -128, -2, -1, 0, 1, 2, 3, 85, 127, 128, 129, 300)]
    patterns = [*steps, *around, top - 1, top, top + 1, top + 2]
    patterns += generator(f"hard {dtype}").integers(0, top, 90).tolist()
    positive = np.array(patterns, np.uint16)
    return np.concatenate([positive, positive | 0x8000]).view(HALF[dtype])


@HALVES
def test_sums_and_products_of_all_hard_pairs(dtype: Any) -> None:
    """ml_dtypes and NumPy form both in float32 and round once. So do torch and every device; and for a product, and for
    a sum of two float16, that is the exact value rounded once."""
    nx, x = Numerics(dtype), hard(dtype)
    a, b = np.repeat(x, len(x)), np.tile(x, len(x))
    assert len(a) > 40_000
    with quiet():
        wide = nx.array(a), nx.array(b)
        same(nx.add(*wide), a + b)
        same(nx.mul(*wide), a * b)
        same(nx.add(wide[0], -wide[1]), a - b)
        same(nx.cast(wide[0] / wide[1]), a / b)


@HALVES
@given(pair=st.tuples(st.integers(0, 65535), st.integers(0, 65535)))
def test_sums_and_products_of_any_pair(dtype: Any, pair: tuple[int, int]) -> None:
    nx = Numerics(dtype)
    a, b = (np.uint16([p]).view(HALF[dtype]) for p in pair)
    with quiet():
        wide = nx.array(a), nx.array(b)
        same(nx.add(*wide), a + b)
        same(nx.mul(*wide), a * b)
        if np.isfinite(wide).all():
            exact = float(wide[0][0]) * float(wide[1][0])
            same(nx.mul(*wide), np.array([once(exact, dtype)]))


@HALVES
def test_random_pairs(dtype: Any) -> None:
    nx = Numerics(dtype)
    a, b = generator("pairs").integers(0, 1 << 16, (2, 1 << 20), dtype=np.uint16).view(HALF[dtype])
    with quiet():
        wide = nx.array(a), nx.array(b)
        same(nx.add(*wide), a + b)
        same(nx.mul(*wide), a * b)


@HALVES
def test_a_number_that_is_no_half_takes_part_in_float32(dtype: Any) -> None:
    """A scale stays a float32 (weak) scalar, as a Python number does in torch: the product is rounded once."""
    nx, x = Numerics(dtype), every(dtype)
    scale = 20**-0.5
    with quiet():
        same(nx.mul(nx.array(x), scale), (x.astype(np.float32) * np.float32(scale)).astype(HALF[dtype]))


# Sums of products


def operands(dtype: str, *shape: int) -> tuple[Array, Array]:
    """x (M, K) and weight (N, K) as native halves, of all magnitudes that do not overflow."""
    rows, depth, columns = shape
    rng = generator(f"sums {shape}")
    x = rng.normal(size=(rows, depth)) * np.exp2(rng.integers(-6, 7, (rows, depth)))
    return x.astype(HALF[dtype]), rng.normal(size=(columns, depth)).astype(HALF[dtype])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (7, 48, 11), (5, 257, 9), (2, 1152, 3)])
@pytest.mark.parametrize("profile", [SDPA, EAGER, RUNNING], ids=lambda p: p.name)
@HALVES
def test_a_sum_is_accumulated_in_float32_and_rounded_once(
    dtype: Any, profile: Any, shape: tuple[int, int, int]
) -> None:
    nx = Numerics(dtype, profile)
    x, weight = operands(dtype, *shape)
    a, b = x.astype(np.float32), weight.astype(np.float32).T
    wide = nx.backend.running(a, b) if profile is RUNNING and shape[1] > 1 else a @ b
    kept = nx.product(nx.array(x), nx.array(weight).T)
    assert kept.dtype == np.float32
    assert np.array_equal(kept, wide), "kept wide"
    same(nx.matmul(nx.array(x), nx.array(weight).T), wide.astype(HALF[dtype]))
    same(nx.linear(nx.array(x), weight), wide.astype(HALF[dtype]))
    bias = operands(dtype, 1, shape[2], 1)[0][0]
    same(nx.linear(nx.array(x), weight, bias), (wide + bias.astype(np.float32)).astype(HALF[dtype]))
    # (n − 1) additions of at most u₃₂ each: |wide − exact| ≤ n · u₃₂ · Σ|x w|, to first order
    exact, size = x.astype(float) @ weight.astype(float).T, np.abs(x.astype(float)) @ np.abs(weight.astype(float)).T
    assert (np.abs(wide - exact) <= 1.01 * shape[1] * 2.0**-24 * size).all()


@HALVES
def test_where_float32_adds_without_error_the_sum_is_the_exact_one(dtype: Any) -> None:
    """Numbers of few bits: every partial sum is a float32, whatever the order; one rounding is left, checked against
    rational numbers."""
    rng = generator("exact sums")
    x, weight = (rng.integers(-120, 121, shape).astype(np.float32) / 8 for shape in ((6, 33), (5, 33)))
    exact = [
        [sum(Fraction(float(p)) * Fraction(float(q)) for p, q in zip(r, c, strict=True)) for c in weight] for r in x
    ]
    expected = np.array([[once(float(v), dtype) for v in row] for row in exact])
    for profile in (SDPA, EAGER, RUNNING):
        found = Numerics(dtype, profile).linear(x, weight.astype(HALF[dtype]))
        same(found + 0.0, expected + 0.0)
    assert any(once(float(v), dtype) != v for row in exact for v in row), "nothing was rounded"


@HALVES
def test_the_rounding_is_at_the_end_and_nowhere_else(dtype: Any) -> None:
    """1 + u + u, with u half a step: rounding each partial sum would give 1 (ties to even, twice)."""
    u = 2.0 ** -BITS[dtype]
    nx = Numerics(dtype)
    for profile in (SDPA, EAGER, RUNNING):
        found = Numerics(dtype, profile).linear(nx.array([[1, 1, 1]]), np.array([[1, u, u]], HALF[dtype]))
        assert found.tolist() == [[1 + 2 * u]]
    by_steps = np.array(1, HALF[dtype]) + HALF[dtype](u) + HALF[dtype](u)
    assert float(by_steps) == 1, "the native type's own additions do round"
