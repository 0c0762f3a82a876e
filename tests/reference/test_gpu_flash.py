"""The kernels of `cupy-fast` against float64 on NumPy, over shapes, masks and types. Run with: pytest -m gpu"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from attention_truth import TYPES, U, bound, calls, truth
from helpers import ROUNDOFF, Array
from hypothesis import HealthCheck, example, given, settings

from t5g2ref import backend, ops, vision
from t5g2ref.attention import Keys, attend
from t5g2ref.cache import KeyValue
from t5g2ref.dtypes import DType
from t5g2ref.masks import EVERYTHING, Band
from t5g2ref.numerics import FAST, Numerics
from t5g2ref.weights import Biased

pytestmark = pytest.mark.gpu
MANY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@pytest.fixture(scope="module")
def device() -> Any:
    cupy = pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device; CuPy sees none")
    return backend.find("cupy-fast")


@pytest.fixture(params=["the card's", "the older"])
def kernels(request: Any, device: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels of this card's kind, and those of any other."""
    from t5g2ref.backend.cuda import flash

    if request.param == "the older":
        monkeypatch.setattr(flash, "HOPPER", 0)
    flash.fitting.cache_clear()
    yield
    flash.fitting.cache_clear()


def never(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("the definition was asked")


def asked(nx: Numerics, q: Any, groups: list[Keys], **named: Any) -> Any:
    """What the kernel answers; never the definition's answer."""
    twin: Callable[..., Any] = nx.backend.twins["attend"]  # type: ignore[assignment]
    with nx.scope():
        return twin(never, nx, q, groups, **named)


LONG = {"dtype": "bfloat16", "width": 256, "batch": 1, "kv_heads": 1, "sharing": 4, "length": 1500, "first": 0}
LONG |= {"groups": [(1500, 0, 255, 256, True)], "cap": None, "split": True, "seed": 1}


@MANY
@given(asking=calls())
@example(asking=LONG)
@example(asking={**LONG, "dtype": "float16", "width": 72, "kv_heads": 8, "sharing": 1})
@example(
    asking={**LONG, "dtype": "float32", "width": 72, "kv_heads": 8, "sharing": 1, "groups": [(1500, 9, 0, 3, True)]}
)
def test_attention(device: Any, kernels: None, asking: dict[str, Any]) -> None:
    width, batch, kv_heads, dtype = (asking[n] for n in ("width", "batch", "kv_heads", "dtype"))
    nx, rng, host = Numerics(dtype, FAST, device), np.random.default_rng(asking["seed"]), device.host

    def drawn(count: int, length: int) -> Any:
        shape = (batch, length, count, width) if asking["split"] else (batch, count, length, width)
        with nx.scope():
            x = nx.array(rng.normal(size=shape))
        return x.swapaxes(1, 2) if asking["split"] else x

    q, groups, there = drawn(kv_heads * asking["sharing"], asking["length"]), [], []
    for length, start, back, ahead, padded in asking["groups"]:
        k, v = drawn(kv_heads, length), drawn(kv_heads, length)
        valid = rng.random((batch, length)) < 0.8 if padded else None
        with nx.scope():
            shown = None if valid is None else device.xp.asarray(valid)
        groups.append(Keys(KeyValue(k, v, start), shown, Band(back, ahead)))
        wide = KeyValue(host(k).astype(np.float64), host(v).astype(np.float64), start)
        there.append(Keys(wide, valid, Band(back, ahead)))
    keys = sum(length for length, *_ in asking["groups"])
    rule: dict[str, Any] = {"scale": width**-0.5, "cap": asking["cap"]}
    found = host(asked(nx, q, groups, first_query=asking["first"], **rule)).astype(np.float64)
    expected, sizes, scores = truth(host(q).astype(np.float64), there, first=asking["first"], **rule)
    error = np.abs(found - expected)
    assert (
        error <= bound(dtype, width, keys, expected, sizes, scores)
    ).all()  # a NaN is not; and 0 where nothing is seen


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [8, 72, 128])
def test_a_row_that_sees_nothing_is_zero_and_a_nan_shows(device: Any, kernels: None, dtype: DType, width: int) -> None:
    nx, xp = Numerics(dtype, FAST, device), device.xp
    with nx.scope():
        k, v, q = (nx.array(np.random.default_rng(n).normal(size=(2, 1, 70, width))) for n in range(3))
        q[0, 0, 5, 3] = xp.nan
        valid = xp.ones((2, 70), bool)
        valid[1] = False
    found = device.host(asked(nx, q, [Keys(KeyValue(k, v), valid)], scale=1.0)).astype(np.float64)
    assert np.isnan(found[0, 0, 5]).all()
    assert np.isfinite(np.delete(found[0, 0], 5, axis=0)).all()
    assert not found[1].any()


@pytest.mark.parametrize("dtype", TYPES)
def test_the_same_call_has_the_same_bits(device: Any, kernels: None, dtype: DType) -> None:
    nx = Numerics(dtype, FAST, device)
    with nx.scope():
        q, k, v = (nx.array(np.random.default_rng(n).normal(size=(1, 8, 700, 72))) for n in range(3))
    first, second = (device.host(asked(nx, q, [Keys(KeyValue(k, v))], scale=0.1)).tobytes() for _ in range(2))
    assert first == second


def test_no_score_is_in_memory(device: Any) -> None:
    """Of 8192 queries and keys they would be 256 MiB; queries, keys, values and result are 4 MiB in all."""
    nx = Numerics("bfloat16", FAST, device)
    with nx.scope():
        q, k, v = (nx.array(np.zeros((1, 1, 8192, 64))) for _ in range(3))
        device.pool.free_all_blocks()
        before = device.pool.total_bytes()
        attend(nx, q, [Keys(KeyValue(k, v), band=EVERYTHING)], scale=1.0)
        assert device.pool.total_bytes() - before <= 2 << 20


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [8, 24, 1152])
def test_the_other_twins(device: Any, dtype: DType, width: int) -> None:
    """Within the bounds of a float32 sum and of each rounding to the type: of a product, of what is added to it."""
    nx, exact, rng = Numerics(dtype, FAST, device), Numerics("float64"), np.random.default_rng(width)
    with nx.scope():
        x, w, residual = (nx.array(rng.normal(0.3, 2, shape)) for shape in ((2, 9, width), (40, width), (2, 9, 40)))
        scale, shift, bias = (nx.array(rng.normal(size=n)) for n in (width, width, 40))
        dense = Biased(w, bias)
        found = [ops.layer_norm(nx, x, scale, shift, 1e-6), ops.gelu_tanh(nx, x), nx.linear(x, w, bias)]
        found += [vision.added_linear(nx, residual, x, dense, ""), vision.activated_linear(nx, x, dense, "")]
    h, a, b, m, c, r = (device.host(array).astype(np.float64) for array in (x, scale, shift, w, bias, residual))
    normed, product = ops.layer_norm(exact, h, a, b, 1e-6), h @ m.T
    u, sums = ROUNDOFF[dtype], np.abs(h) @ np.abs(m).T + np.abs(c)
    linear = (width + 64) * U * sums + u * (np.abs(product) + np.abs(product + c))
    sizes = np.abs(ops.layer_norm(exact, h, a, 0 * b, 1e-6)) + np.abs(b)  # what is added, which may cancel
    rows = [
        (normed, (width + 64) * U * sizes + u * np.abs(normed)),
        (gelu(h), (64 + 16 * np.abs(h) ** 3) * U * np.abs(gelu(h)) + u * np.abs(gelu(h))),
        (product + c, linear),
        (product + c + r, linear + u * np.abs(product + c + r)),
        (gelu(product + c), 1.13 * linear + 64 * U * np.abs(product) + u * np.abs(gelu(product + c))),  # its slope
    ]
    for got, (right, limit) in zip(found, rows, strict=True):
        error = np.abs(device.host(got).astype(np.float64) - right)
        assert (error <= 1.02 * limit + (2.0**-23 if dtype == "float16" else 2.0**-120)).all()


def gelu(x: Array) -> Array:
    """x/2 · (1 + tanh u) = x / (1 + exp(−2 u)), which does not cancel."""
    with np.errstate(over="ignore"):
        right: Array = x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return right
