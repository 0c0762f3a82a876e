"""Every fused kernel against its array definition, and cuBLAS against float64 products. Run with: pytest -m gpu"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import ROUNDOFF

from t5g2ref import attention, backend, embedding, numerics, ops, rope
from t5g2ref.attention import EVERYTHING, Keys
from t5g2ref.cache import KeyValue
from t5g2ref.dtypes import DTYPES, HALF, DType
from t5g2ref.masks import Band
from t5g2ref.numerics import EAGER, FLASH, SDPA, TIES, Numerics, Profile
from t5g2ref.trace import OFF

pytestmark = pytest.mark.gpu
TYPES = pytest.mark.parametrize("dtype", DTYPES)
TF32 = 3  # CUBLAS_TF32_TENSOR_OP_MATH


@pytest.fixture(scope="module")
def device() -> Any:
    cupy = pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device; CuPy sees none")
    return backend.find("cupy")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20251212)


def fused(device: Any, dtype: DType) -> Numerics:
    return Numerics(dtype, SDPA, device)


def plain(device: Any, dtype: DType) -> Numerics:
    """The same device without twins: the array definitions."""
    without = copy.copy(device)
    without.twins = {}
    return Numerics(dtype, SDPA, without)


def exact() -> Numerics:
    return Numerics("float64")


def bits(device: Any, x: Any) -> Any:
    host = device.host(x)
    assert np.isfinite(host.astype(np.float64)).all()
    return host.dtype, host.shape, host.tobytes()


def layouts(nx: Numerics, rng: np.random.Generator) -> list[Any]:
    """Arrays (…, 10): dense, one row, split heads, a slice of keys, one beyond a block's width."""
    x = nx.array(rng.normal(0, 2, (3, 5, 40)))
    return [x[..., :10].copy(), x[0, 0, :10], attention.split_heads(x, 10), x.reshape(3, 5, 4, 10)[:, 2:], x[..., ::4]]


@TYPES
def test_elementwise_twins_have_the_bits_of_their_definitions(device: Any, rng: Any, dtype: DType) -> None:
    ours, theirs = fused(device, dtype), plain(device, dtype)
    for x in layouts(ours, rng):
        assert bits(device, ops.gelu_tanh(ours, x)) == bits(device, ops.gelu_tanh(theirs, x))
        gated = [bits(device, ops.gated_gelu(nx, x, 3 * x.astype(x.dtype), OFF)) for nx in (ours, theirs)]
        assert gated[0] == gated[1]
    y, bias = ours.wide(ours.array(rng.normal(size=(7, 33)))), ours.array(rng.normal(size=33))
    assert bits(device, numerics.biased(ours, y, bias)) == bits(device, numerics.biased(theirs, y, bias))


@TYPES
def test_rotate(device: Any, rng: Any, dtype: DType) -> None:
    ours, theirs = fused(device, dtype), plain(device, dtype)
    x = attention.split_heads(ours.array(rng.normal(size=(2, 7, 3 * 16))), 16)
    cos, sin = (ours.array(rng.normal(size=(2, 7, 16))) for _ in range(2))
    assert bits(device, rope.rotate(ours, x, cos, sin)) == bits(device, rope.rotate(theirs, x, cos, sin))


@TYPES
@pytest.mark.parametrize("shape", [(1, 7, 16), (2, 1, 16), (2, 7, 1)])
def test_tables_with_an_axis_to_be_broadcast(device: Any, rng: Any, dtype: DType, shape: tuple[int, ...]) -> None:
    ours, theirs = fused(device, dtype), plain(device, dtype)
    x = attention.split_heads(ours.array(rng.normal(size=(2, 7, 3 * 16))), 16)
    tables = tuple(ours.array(rng.normal(size=shape)) for _ in range(2))
    expected = bits(device, rope.rotate(theirs, x, *tables))
    assert bits(device, rope.rotate(ours, x, *tables)) == expected
    weight, whole = ours.array(rng.normal(size=16)), tuple(device.xp.broadcast_to(t, (2, 7, 16)) for t in tables)
    found = [attention.turned_norm(ours, x, weight, 1e-6, pair, "", OFF) for pair in (tables, whole)]
    assert bits(device, found[0]) == bits(device, found[1])


@pytest.mark.parametrize("dtype", list(HALF))
def test_tables_of_another_type(device: Any, rng: Any, dtype: DType) -> None:
    ours, theirs = fused(device, dtype), plain(device, dtype)
    x = attention.split_heads(ours.array(rng.normal(size=(2, 7, 3 * 16))), 16)
    cos, sin = (device.xp.asarray(rng.normal(size=(2, 7, 16)).astype("float32")) for _ in range(2))
    assert bits(device, rope.rotate(ours, x, cos, sin)) == bits(device, rope.rotate(theirs, x, cos, sin))


def within_one_rounding(device: Any, found: Any, expected: np.ndarray[Any, Any], dtype: str) -> None:
    """Half types: one rounding of a float32 result. Wider ones: a few roundings of their own, over sums of hundreds."""
    found = device.host(found).astype(np.float64)
    assert found.shape == expected.shape
    assert found.size
    u = ROUNDOFF[dtype]
    bound = (u * (1 + 2.0**-6) if dtype in HALF else 16 * u) * np.abs(expected) + 2.0**-25 * (dtype == "float16")
    assert (np.abs(found - expected) <= bound + 4 * u * (dtype not in HALF)).all()


@pytest.mark.parametrize("dtype", list(HALF))
@pytest.mark.parametrize("profile", [EAGER, TIES], ids=lambda p: p.name)
def test_scalars_are_not_rounded_beside_half_arrays(device: Any, rng: Any, dtype: DType, profile: Profile) -> None:
    """The unfused path has the numbers of NumPy's emulation; tanh's last bits, and so a rare rounding, may differ."""
    there, here = Numerics(dtype, profile, device), Numerics(dtype, profile)
    x = rng.integers(-8, 9, (2, 1, 5, 16)) / 4.0  # products that are exact in any order
    args = 10**-0.5, None, None, (2, 1, 1, 5, 5)
    found, expected = (attention.attention_weights(nx, nx.array(x), nx.array(x), *args) for nx in (there, here))
    within_one_rounding(device, found, expected.astype(np.float64), dtype)
    x = rng.normal(0, 40, 4000)
    capped, truth = (ops.softcap(nx, nx.array(x), 30.1) for nx in (there, here))
    assert (device.host(capped).astype(np.float32) != truth).mean() < 0.01


@TYPES
@pytest.mark.parametrize("width", [1, 10, 256, 1152])
def test_norms(device: Any, rng: Any, dtype: DType, width: int) -> None:
    nx = fused(device, dtype)
    x = attention.split_heads(nx.array(rng.normal(0.3, 2, (2, 3, 4 * width))), width)
    weight, bias = nx.array(rng.normal(size=width)), nx.array(rng.normal(size=width))
    wide = [device.host(a).astype(np.float64) for a in (x, weight, bias)]
    within_one_rounding(device, ops.rms_norm(nx, x, weight, 1e-6), ops.rms_norm(exact(), *wide[:2], 1e-6), dtype)
    if width > 1:  # of one number the variance is zero, and its rounding errors are all there is
        found, truth = ops.layer_norm(nx, x, weight, bias, 1e-6), ops.layer_norm(exact(), *wide, 1e-6)
        size = np.abs(ops.layer_norm(exact(), *wide[:2], 0 * wide[2], 1e-6)) + np.abs(wide[2])  # the sum may cancel
        u = ROUNDOFF["float64" if dtype == "float64" else "float32"]
        error = np.abs(device.host(found).astype(np.float64) - truth)
        assert (error <= 32 * u * size + ROUNDOFF[dtype] * 1.01 * np.abs(truth) + 2.0**-25 * (dtype == "float16")).all()


@TYPES
@pytest.mark.parametrize("width", [1, 10, 256, 1152])
def test_fused_norms_have_the_bits_of_their_parts(device: Any, rng: Any, dtype: DType, width: int) -> None:
    # So a model gives the same numbers whether someone listens at its taps or not.
    nx = fused(device, dtype)
    x, residual = nx.array(rng.normal(0.3, 2, (2, 3, width))), nx.array(rng.normal(size=(2, 3, width)))
    weight = nx.array(rng.normal(size=width))
    parts = nx.add(residual, ops.rms_norm(nx, x, weight, 1e-6))
    assert bits(device, ops.add_norm(nx, residual, x, weight, 1e-6, "", OFF)) == bits(device, parts)
    if width % 2 == 0:
        heads = attention.split_heads(nx.array(rng.normal(size=(2, 5, 3 * width))), width)
        tables = tuple(nx.array(rng.normal(size=(2, 5, width))) for _ in range(2))
        parts = rope.rotate(nx, ops.rms_norm(nx, heads, weight, 1e-6), *tables)
        found = attention.turned_norm(nx, heads, weight, 1e-6, tables, "", OFF)
        assert bits(device, found) == bits(device, parts)


@TYPES
@pytest.mark.parametrize("keys", [1, 31, 700, 5000])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_softmax(device: Any, rng: Any, dtype: DType, keys: int, cap: float | None) -> None:
    nx = fused(device, dtype)
    scores = nx.wide(nx.array(rng.normal(0, 4, (2, 3, 2, 5, keys))))
    allowed = rng.random((2, 1, 1, 5, keys)) < 0.7
    allowed[0, 0, 0, 3] = False  # a query that may see nothing gets zeros
    for mask in (None, allowed, allowed[:1]):
        host = device.host(scores).astype(np.float64)
        truth = ops.scaled_softmax(exact(), host, 0.25, cap, mask)
        given = None if mask is None else device.xp.asarray(mask)
        within_one_rounding(device, ops.scaled_softmax(nx, scores, 0.25, cap, given), truth, dtype)
        if mask is not None:
            assert not device.host(ops.scaled_softmax(nx, scores, 0.25, cap, given))[0, :, :, 3].any()
    within_one_rounding(device, ops.masked_softmax(nx, nx.array(scores), None), ops.masked_softmax(
        exact(), device.host(nx.array(scores)).astype(np.float64), None), dtype)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", *HALF])
@pytest.mark.parametrize("keys", [1, 600, 5000])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_the_softmax_of_a_flash_kernel(device: Any, rng: Any, dtype: DType, keys: int, cap: float | None) -> None:
    ours, theirs = (replace(nx(device, dtype), profile=FLASH) for nx in (fused, plain))
    scores = ours.wide(ours.array(rng.normal(0, 4, (2, 3, 2, 5, keys))))
    allowed = rng.random((2, 1, 1, 5, keys)) < 0.7
    allowed[0, 0, 0, 3] = False
    for mask in (None, device.xp.asarray(allowed)):
        found, expected = (device.host(ops.scaled_softmax(nx, scores, 0.25, cap, mask)) for nx in (ours, theirs))
        error = np.abs(found - expected)
        # The sum has another order; an exponential near a tie may be rounded to the neighbour.
        assert (error <= (2 * ROUNDOFF[dtype] + 64 * 2.0**-24) * expected + 2.0**-24 * (dtype == "float16")).all()
        assert (error > 64 * 2.0**-24 * expected).mean() < 0.02


@TYPES
def test_softmax_shows_a_nan(device: Any, dtype: DType) -> None:
    nx = fused(device, dtype)
    scores = nx.wide(nx.array(np.array([[[1.0, np.nan, 2.0], [1.0, 0.0, 2.0]]])))
    found = np.isnan(device.host(ops.masked_softmax(nx, scores, None)).astype(np.float64))
    assert found.tolist() == [[[True] * 3, [False] * 3]]


@pytest.mark.parametrize("band", [EVERYTHING, Band(2, 0), Band(1, 3), Band(None, 0)])
@pytest.mark.parametrize("padded", [False, True])
def test_visible(device: Any, rng: Any, band: Band, padded: bool) -> None:
    ours, theirs, xp = fused(device, "float32"), plain(device, "float32"), device.xp
    valid = [xp.asarray(rng.random((2, n)) < 0.7) if padded else None for n in (12, 5)]
    kv = [KeyValue(xp.zeros((2, 1, n, 4)), xp.zeros((2, 1, n, 4)), start) for n, start in ((9, 3), (5, 0))]
    own = Keys(kv[0], None if valid[0] is None else valid[0][:, 3:], band)
    for sources in ([own], [own, Keys(kv[1], valid[1])]):
        found, expected = (attention.visible(nx, sources, 6, 11) for nx in (ours, theirs))
        assert (found is None) == (expected is None)
        if found is not None:
            assert np.array_equal(device.host(found), device.host(expected))


@TYPES
def test_join(device: Any, rng: Any, dtype: DType) -> None:
    nx = fused(device, dtype)
    a = attention.split_heads(nx.array(rng.normal(size=(2, 4, 3 * 8))), 8)
    b = nx.array(rng.normal(size=(2, 3, 9, 8)))[:, :, 2:7]
    for pair in ([a, b], [a[:, :, :0], b], [a, b[:, :, :1]]):
        assert bits(device, nx.join(pair, 2)) == bits(device, device.xp.concatenate(pair, axis=2))


def operands(nx: Numerics, rng: np.random.Generator) -> list[tuple[Any, Any]]:
    """Pairs (…, M, K), (…, K, N) in the layouts that the model makes, and the odd ones."""
    xp, make = nx.xp, lambda *shape: nx.array(rng.normal(size=shape))
    x, w, heads = make(7, 33), make(20, 33), attention.split_heads(make(2, 5, 3 * 16), 16)
    return [
        *[(x, w.T), (x[:1], w.T), (x, w[:1].T), (make(33, 7).T, w.T), (x[:, 1:30], w.T[1:30]), (x[::2], w.T)],
        *[
            (heads, heads.swapaxes(-1, -2)),
            (heads[:1], heads[:1].swapaxes(-1, -2)),
            (heads[:, :, :1], make(2, 3, 16, 4)),
        ],
        *[(make(2, 3, 6, 5), attention.split_heads(make(2, 5, 3 * 16), 16)), (make(4, 0, 3), make(4, 3, 2))],
        *[
            (make(3, 0), make(0, 2)),
            (make(1, 1), make(1, 1)),
            (xp.broadcast_to(make(1, 4, 6), (3, 4, 6)), make(3, 6, 2)),
        ],
    ]


@TYPES
def test_products(device: Any, rng: Any, dtype: DType) -> None:
    nx = fused(device, dtype)
    wide = ROUNDOFF["float64" if dtype == "float64" else "float32"]
    for a, b in operands(nx, rng):
        left, right = (device.host(x).astype(np.float64) for x in (a, b))
        truth, size = left @ right, np.abs(left) @ np.abs(right)
        for found, u in ((nx.product(a, b), wide), (nx.matmul(a, b), ROUNDOFF[dtype])):
            shown = device.host(found)
            assert shown.shape == truth.shape
            assert shown.dtype == (nx.wide_dtype if u == wide and dtype in HALF else shown.dtype)
            bound = (a.shape[-1] + 1) * wide * size + 1.001 * u * np.abs(truth)
            assert (np.abs(shown.astype(np.float64) - truth) <= bound).all()


def test_running_sums_are_taken_in_order(device: Any, rng: Any) -> None:
    for m, depth, n in ((1, 5, 1), (70, 37, 129), (3, 260, 64), (16, 48, 66), (17, 16, 1), (300, 1152, 200)):
        a, b = rng.normal(size=(2, m, depth)).astype("f4"), rng.normal(size=(2, n, depth)).astype("f4").swapaxes(1, 2)
        total = np.zeros((2, m, n), "f4")
        for k in range(depth):
            total += a[:, :, k : k + 1] * b[:, k : k + 1]
        found = device.running(
            device.xp.asarray(a), device.xp.asarray(np.ascontiguousarray(b.swapaxes(1, 2))).swapaxes(1, 2)
        )
        assert np.array_equal(device.host(found), total)


def test_float32_products_are_not_tf32(device: Any) -> None:
    """A product of 1 + 2⁻²⁰ by 1 is exact in float32 and loses its last bits in TF32; nor does a mode that someone set
    on CuPy's own handle reach ours."""
    from cupy.cuda import cublas
    from cupy.cuda.device import get_cublas_handle

    nx, n, xp = fused(device, "float32"), 256, device.xp
    x = xp.full((n, n), 1 + 2.0**-20, dtype="float32")
    before = cublas.getMathMode(get_cublas_handle())
    cublas.setMathMode(get_cublas_handle(), TF32)
    try:
        tf32 = device.host(xp.matmul(x, xp.eye(n, dtype="float32")))
        y = nx.linear(x, xp.eye(n, dtype="float32"))
    finally:
        cublas.setMathMode(get_cublas_handle(), before)
    assert np.array_equal(device.host(y), device.host(x))
    print("TF32 on CuPy's handle changes its matmul:", not np.array_equal(tf32, device.host(x)))


def test_every_twin_stands_in_for_an_operation(device: Any) -> None:
    modules = (numerics, ops, rope, attention, embedding)
    named = {n for module in modules for n, f in vars(module).items() if hasattr(f, "__wrapped__")}
    assert set(device.twins) <= named
    print("without a kernel of their own:", sorted(named - set(device.twins)))
