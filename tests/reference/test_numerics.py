"""numerics: the grids of the half types bit by bit, what an island costs, and the linear layer against loops."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers import HALF, ROUNDOFF, Array, close, frozen, generator, normal, on_grid, rounded, same_bits

from t5g2ref.backend import NUMPY, interface
from t5g2ref.dtypes import DTYPES, to_grid, unit_roundoff
from t5g2ref.embedding import embed_scale
from t5g2ref.numerics import EAGER, EXACT, RUNNING, SDPA, Numerics

PATTERNS = np.arange(1 << 16, dtype=np.uint16)
HALVES = ("bfloat16", "float16")


def values(dtype: str) -> Array:
    """float32 value of all 65536 bit patterns, by the formats' definitions and not by ml_dtypes: bfloat16 is the upper
    half of a float32, float16 is what C's `struct` reads as 'e'."""
    if dtype == "bfloat16":
        return (PATTERNS.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.array(struct.unpack("<65536e", PATTERNS.astype("<u2").tobytes()), np.float32)


def positive(dtype: str) -> Array:
    """The finite values from 0 up, in the order of their patterns, so that the index is the pattern."""
    ascending = values(dtype)[:0x8000]
    return ascending[np.isfinite(ascending)]


# The grid


@pytest.mark.parametrize("dtype", HALVES)
def test_every_value_of_the_type_is_left_as_it_is(dtype: str) -> None:
    # Broken by flushing subnormals, by losing −0 or infinity, by another mantissa width.
    numbers = values(dtype)[~np.isnan(values(dtype))]
    same_bits(to_grid(frozen(numbers), dtype), numbers)
    assert np.isnan(to_grid(np.float32([np.nan]), dtype)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_halfway_cases_go_to_the_even_pattern_and_their_neighbours_to_the_nearer_value(dtype: str) -> None:
    # Broken by truncation, by rounding halves up or away, by rounding subnormals differently.
    grid = positive(dtype)
    low, high = grid[:-1], grid[1:]
    middle = ((low.astype(np.float64) + high) / 2).astype(np.float32)  # exact: one bit more than the type has
    even = np.where(np.arange(low.size) % 2 == 0, low, high)
    for sign in (np.float32(1), np.float32(-1)):
        same_bits(to_grid(frozen(sign * middle), dtype), sign * even)
        same_bits(to_grid(frozen(sign * np.nextafter(middle, np.float32(0))), dtype), sign * low)
        same_bits(to_grid(frozen(sign * np.nextafter(middle, np.float32(np.inf))), dtype), sign * high)


@pytest.mark.parametrize("dtype", HALVES)
def test_grid_is_that_of_ml_dtypes(dtype: str) -> None:
    # The emulation (float32 arrays) and the native type (CuPy, files) must be one grid: magnitudes of 2⁻²⁰ to 2¹³.
    x = normal("grid", 5000, dtype="float32") * np.exp2(np.arange(5000, dtype=np.float32) % 34 - 20)
    same_bits(to_grid(frozen(x), dtype), x.astype(HALF[dtype]).astype(np.float32))


def test_beyond_the_range_is_infinite() -> None:
    # float16 ends at 65504; 65520 is half a step on and goes to the even pattern, which is infinity. It is not clipped.
    with np.errstate(over="ignore"):  # NumPy's cast says so; see the module's page on float16
        found = to_grid(np.float32([65504, 65519.996, 65520, -1e5]), "float16")
    assert found.tolist() == [65504.0, 65504.0, np.inf, -np.inf]


def nearest_even(x: float, bits: int) -> float:
    """x rounded to `bits` significant binary digits, halves to even, in rational numbers (normal range only)."""
    value, exponent = Fraction(x), 0
    while abs(value) >= 2**bits:
        value, exponent = value / 2, exponent + 1
    while abs(value) < 2 ** (bits - 1):
        value, exponent = value * 2, exponent - 1
    return float(round(value) * Fraction(2) ** exponent)  # Fraction's round goes to even


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_float64_is_rounded_once(dtype: str, bits: int) -> None:
    # Broken by going through float32, rounded to nearest: 1 + 2⁻⁸ + 2⁻⁴⁰ would become a tie, and then 1.
    step = 2.0 ** (1 - bits)
    middle = 1 + step * (np.arange(64) + 0.5)
    x = np.concatenate([middle, middle + 2.0**-40, middle - 2.0**-40, normal("float64 to half", 200)])
    x = np.concatenate([x, -x])
    expected = np.array([nearest_even(v, bits) for v in x], np.float32)
    same_bits(to_grid(frozen(x), dtype), expected)
    assert (rounded(x.astype(np.float32), dtype) != expected).any(), "no example here tells one rounding from two"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wider_types_are_no_grid(dtype: str) -> None:
    x = frozen([1.0, 1 + 2.0**-23], dtype)
    assert to_grid(x, dtype) is x


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_roundoff_is_half_the_step_above_1(dtype: str) -> None:
    u = np.float64(unit_roundoff(dtype))
    assert u == ROUNDOFF[dtype]
    assert Numerics(dtype).unit_roundoff == u  # type: ignore[arg-type]
    if dtype in HALF:
        assert to_grid(np.array(1 + u), dtype) == 1  # a tie, to even
        assert to_grid(np.array(1 + 2 * u), dtype) == 1 + 2 * u


# The object


def test_unknown_dtype_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'float8'.*float64, float32, bfloat16, float16"):
        Numerics("float8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "storage", "wide"),
    [
        ("float64", "float64", "float64"),
        ("float32", "float32", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float16", "float32", "float32"),
    ],
)
def test_memory_and_island_types(dtype: Any, storage: str, wide: str) -> None:
    nx = Numerics(dtype)
    assert (nx.storage, nx.wide_dtype, nx.emulated) == (np.dtype(storage), np.dtype(wide), dtype in HALF)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_islands_are_free_in_the_wide_types(dtype: Any) -> None:
    # Broken by a copy, or by a rounding: the oracle is not rounded on purpose.
    nx, x = Numerics(dtype), normal("islands", 7, dtype=dtype)
    assert nx.wide(x) is x
    assert nx.cast(x) is x
    assert nx.array(x) is x
    assert nx.weight(x) is x


@pytest.mark.parametrize("dtype", HALVES)
def test_leaving_an_island_rounds_once_and_again_changes_nothing(dtype: Any) -> None:
    nx, x = Numerics(dtype), normal("leaving", 500, dtype="float32")
    once = nx.cast(x)
    same_bits(once, rounded(x, dtype))
    same_bits(nx.cast(once), once)
    assert nx.wide(once) is once  # float32 already
    assert (once != x).any(), "nothing was rounded"


@pytest.mark.parametrize("dtype", HALVES)
def test_sum_and_product_are_rounded_once(dtype: Any) -> None:
    # Both operands on the grid: a bfloat16 product is exact in float32 and so is rounded once from the exact value.
    nx = Numerics(dtype)
    a, b = (frozen(rounded(normal(n, 400, dtype="float32"), dtype)) for n in "ab")
    same_bits(nx.add(a, b), rounded(a + b, dtype))
    same_bits(nx.mul(a, b), rounded(a * b, dtype))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_narrow_weights_are_widened_exactly(stored: str) -> None:
    # A float32 or half weight under the float64 oracle keeps its value, and the caller's array is left alone.
    narrow = frozen(normal("narrow", 50, dtype="float32").astype(HALF.get(stored, np.float32)))
    wide = Numerics("float64").weight(narrow)
    same_bits(wide, np.array([float(v) for v in narrow]))


@pytest.mark.parametrize("dtype", HALVES)
def test_native_half_arrays_become_the_emulation_exactly(dtype: Any) -> None:
    native = normal("native", 50, dtype="float32").astype(HALF[dtype])
    same_bits(Numerics(dtype).weight(native), np.array([float(v) for v in native], np.float32))


@pytest.mark.parametrize("dtype", HALVES)
def test_foreign_arrays_are_brought_to_the_grid(dtype: Any) -> None:
    nx, x = Numerics(dtype), normal("foreign", 50)
    for given in (x, x.astype(np.float32), x.astype(ml_dtypes.bfloat16), x.astype(np.float16), [1, 2], np.arange(3)):
        found = nx.array(given)
        assert found.dtype == np.float32
        assert on_grid(found, dtype)


# Products


def naive_linear(x: Array, weight: Array, bias: Array | None) -> list[list[Fraction]]:
    """Σᵢ x[r, i] · weight[o, i] + bias[o] in rational numbers: no rounding at all."""
    return [
        [
            sum(
                (Fraction(float(a)) * Fraction(float(b)) for a, b in zip(row, column, strict=True)),
                Fraction(0) if bias is None else Fraction(float(bias[o])),
            )
            for o, column in enumerate(weight)
        ]
        for row in x
    ]


def absolute(x: Array, weight: Array, bias: Array) -> Array:
    return np.abs(x).astype(np.float64) @ np.abs(weight).T.astype(np.float64) + np.abs(bias)


@pytest.mark.parametrize("profile", [EXACT, SDPA, EAGER, RUNNING], ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_linear_is_the_naive_sum(dtype: Any, profile: Any) -> None:
    # Broken by a transposed weight, a bias added twice or to the wrong axis, a cut of the sum that drops a term.
    x, w, b = (normal(n, *s, dtype=dtype) for n, s in (("x", (5, 37)), ("w", (11, 37)), ("bias", (11,))))
    expected = np.array([[float(v) for v in row] for row in naive_linear(x, w, b)])
    # n − 1 additions, one product a term and the bias, in whatever order: |error| ≤ (n + 1) u Σ |xᵢ wᵢ| to first order.
    bound = 1.01 * 38 * ROUNDOFF[dtype] * absolute(x, w, b)
    close(Numerics(dtype, profile).linear(x, w, b), expected, atol=bound, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_keeps_the_leading_axes_and_needs_no_bias(dtype: Any) -> None:
    # Small eighths: every partial sum is exact in float32, so that the one rounding at the end is all there is.
    rng = np.random.default_rng(0)
    x, w = (frozen(rng.integers(-8, 9, s) / 8, "float32") for s in ((2, 3, 4, 6), (5, 6)))
    found = Numerics(dtype).linear(x.astype(Numerics(dtype).storage), w)
    exact = np.array([[float(v) for v in row] for row in naive_linear(x.reshape(-1, 6), w, None)])
    expected = rounded(exact.reshape(2, 3, 4, 5), dtype)
    same_bits(found, expected + 0.0)


@pytest.mark.parametrize("dtype", HALVES)
def test_bias_is_added_before_the_one_rounding(dtype: Any) -> None:
    # 1 · 1 + 1 · u/2 + bias u/2: rounded together 1 + u/2 + u/2 = 1 + u is a tie to 1, plus u more makes the step.
    u = ROUNDOFF[dtype]
    x, w, b = frozen([[1, 1]], "float32"), frozen([[1, u]], "float32"), frozen([u], "float32")
    found = Numerics(dtype).linear(x, w, b)
    assert found.tolist() == [[1 + 2 * u]]  # rounding before the bias would give 1 and then, a tie again, 1


@pytest.mark.parametrize("width", [1, 5, 15, 16, 17, 100])
def test_reordered_sums_are_the_same_to_rounding_and_not_the_same_bits(width: int) -> None:
    # Broken by cuts that overlap or leave out an element, also where there are fewer elements than cuts.
    x, w = normal("x", 9, width), normal("w", 7, width)
    plain, cut = Numerics("float64").linear(x, w), Numerics("float64", RUNNING).linear(x, w)
    close(cut, plain, atol=2 * 1.01 * width * ROUNDOFF["float64"] * absolute(x, w, np.zeros(7)))  # two such sums
    assert width < 100 or (cut != plain).any(), "the profile changes no order"


def test_matmul_is_batched_and_rounded_once() -> None:
    a, b = frozen(np.arange(12.0).reshape(2, 2, 3), "float32"), frozen(np.arange(12.0).reshape(2, 3, 2), "float32")
    # By hand for the first matrix: [[0, 1, 2], [3, 4, 5]] · [[0, 1], [2, 3], [4, 5]] = [[10, 13], [28, 40]].
    found = Numerics("float32").matmul(a, b)
    assert found[0].tolist() == [[10, 13], [28, 40]]
    # The second: [[6, 7, 8], [9, 10, 11]] · [[6, 7], [8, 9], [10, 11]] = [[172, 193], [244, 274]].
    assert found[1].tolist() == [[172, 193], [244, 274]]
    # Three times that is 516, 579, 732, 822; bfloat16 has steps of 4 there: 579 → 580, and the tie 822 → 824 (even).
    assert Numerics("bfloat16").matmul(a * 3, b)[1].tolist() == [[516, 580], [732, 824]]


# The scale of the embedding


@pytest.mark.parametrize(("width", "scale"), [(640, 25.25), (1152, 34.0), (2560, 50.5)])
def test_embed_scale_of_the_releases(width: int, scale: float) -> None:
    # By the definition: √640 = 25.298…, √1152 = 33.941…, √2560 = 50.596…, each to 8 significant bits.
    assert embed_scale(Numerics("bfloat16"), width) == scale


def test_embed_scale_follows_the_running_table_and_not_the_arithmetic() -> None:
    # √640 = 25.29822128134703465598…; float32's nearest is 25.29822158813476562500 (13263554 · 2⁻¹⁹).
    assert embed_scale(Numerics("float64"), 640) == 25.298221281347036  # shortest decimal of the float64 nearest to it
    assert embed_scale(Numerics("float32"), 640) == 13263554 * 2.0**-19
    assert embed_scale(Numerics("float64", embed_dtype="float32"), 640) == 13263554 * 2.0**-19
    assert embed_scale(Numerics("float32", embed_dtype="bfloat16"), 640) == 25.25


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 5), (5, 4)),
        ((9, 200), (200, 30)),
        ((1, 7), (7, 1)),
        ((1, 64), (64, 48)),
        ((2, 4, 3, 9), (2, 4, 9, 6)),
        ((2, 3, 9), (9, 6)),
        ((9, 6), (5, 6, 2)),
    ],
    ids=str,
)
def test_running_sums_add_one_product_after_the_other(
    dtype: Any, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    rng = generator("running sums")
    a, b = rng.normal(size=left).astype(dtype), rng.normal(size=right).astype(dtype)
    total = a[..., :, 0, None] * b[..., None, 0, :]
    for k in range(1, a.shape[-1]):
        total = total + a[..., :, k, None] * b[..., None, k, :]
    swapped = [np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2) for x in (a, b)]  # as weights are: transposed
    for one, other in ((a, b), (a, swapped[1]), (swapped[0], b), swapped):
        found = NUMPY.running(one, other)
        assert found.dtype == dtype
        assert np.array_equal(found, total)


def test_running_sums_of_large_products_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = generator("large products")
    a, b = rng.normal(size=(6, 40)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    monkeypatch.setattr(interface, "RUNNING_WORK", 30 * 8)
    cut = sum(a[:, k : k + 5] @ b[k : k + 5] for k in range(0, 40, 5))
    assert np.array_equal(NUMPY.running(a, b), cut)
