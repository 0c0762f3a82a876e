"""What the twins of `cupy-fast` tell their kernels, and what they leave to others. All of it runs on NumPy; what the
kernels compute is in test_gpu_flash.py."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cupy_of_numpy import Memory, installed
from helpers import Array, close, generator, same_bits

from t5g2ref import attention, numerics, ops, vision
from t5g2ref.attention import Keys, attend
from t5g2ref.backend import NUMPY
from t5g2ref.cache import KeyValue
from t5g2ref.dtypes import DType
from t5g2ref.masks import EVERYTHING, Band, Given
from t5g2ref.numerics import EAGER, EXACT, FAST, FLASH, RUNNING, SDPA, Numerics, Profile
from t5g2ref.trace import OFF, Trace
from t5g2ref.weights import Biased


def memory(x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """What a kernel finds behind the pointer to x; strides in elements."""
    return np.lib.stride_tricks.as_strided(x, shape, [step * x.itemsize for step in strides])


def seen(length: int, start: int, back: int, ahead: int, padding: tuple[Any, int], batch: int, queries: Array) -> Array:
    """Which keys of a group the kernels of flash.cu show: bool (batch, queries, length)."""
    distance = start + np.arange(length) - queries[:, None]
    may = np.broadcast_to((distance >= -back) & (distance <= ahead), (batch, *distance.shape))
    valid, step = padding
    return may if isinstance(valid, int) else may & memory(valid, (batch, length), (step, 1))[:, None]


def flash_kernel(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
    """The kernels of flash.cu, from the same arguments: attention with all scores at once."""
    q, q0, q1, q2, sharing, queries, width, first, scale, cap, wide = args[:11]
    (own, other), out = (args[11:25], args[25:39]), args[39]
    assert (len(args), kernel.threads % 32, grid[0]) == (40, 0, -(-queries * sharing // kernel.rows))
    _, heads, batch = grid
    positions, k, v, may = first + np.arange(queries), [], [], []
    for keys, k0, k1, k2, values, v0, v1, v2, length, start, back, ahead, *padding in (own, other):
        if length:
            k.append(memory(keys, (batch, heads, length, width), (k0, k1, k2, 1)))
            v.append(memory(values, (batch, heads, length, width), (v0, v1, v2, 1)))
            may.append(seen(length, start, back, ahead, tuple(padding), batch, positions))
            assert not wide or all(x.ctypes.data % 16 == 0 for x in (keys, values))
    asked = memory(q, (batch, heads * sharing, queries, width), (q0, q1, q2, 1))
    scores = asked @ np.concatenate(k, 2).repeat(sharing, 1).swapaxes(-1, -2) * scale
    scores = cap * np.tanh(scores / cap) if cap > 0 else scores
    scores = np.where(np.concatenate(may, 2)[:, None], scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = powers.sum(axis=-1, keepdims=True)
    weights = powers / np.where(total == 0, 1.0, total)
    out[...] = (weights @ np.concatenate(v, 2).repeat(sharing, 1)).swapaxes(1, 2)


def finish_kernel(then: str, y: Array, bias: Array, width: int, residual: Any, size: int) -> None:
    """`finish` of fast.cu; the activation is the definition's."""
    assert (width * 16, size * 16) == (bias.nbytes, y.nbytes)
    y += bias
    if then == "GELU":
        y[...] = ops.gelu_tanh(Numerics("float32"), np.asarray(y))
    if then == "RESIDUAL":
        y += residual.reshape(y.shape)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were launched, on a CuPy that has NumPy's arrays."""
    names, fused, flash, fast = installed(monkeypatch)

    def launch_flash(device: int, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
        names.append(kernel.name)
        flash_kernel(kernel, grid, args)

    def launch_fast(name: str, dtype: Any, rest: str, args: tuple[Any, ...], blocks: int) -> None:
        names.append(f"fast {name}{rest}")
        if name == "finish":
            finish_kernel(rest.removeprefix(", "), *args)

    def launch_fused(name: str, *rest: Any) -> None:
        names.append(name)

    monkeypatch.setattr(flash, "launch", launch_flash)
    monkeypatch.setattr(fast, "launch", launch_fast)
    monkeypatch.setattr(fused, "launch", launch_fused)
    return names


def fast(dtype: DType = "float32", profile: Profile = SDPA) -> Numerics:
    return Numerics(dtype, profile, NUMPY.with_twins(sys.modules["t5g2ref.backend.cuda.fast"].FAST))


def numbers(name: str, *shape: int, dtype: str = "float32") -> Array:
    return generator(name).normal(size=shape).astype(dtype).view(Memory)


def heads(name: str, *shape: int, split: bool = False) -> Array:
    """(B, N, T, H), dense or as the heads of a projection lie: (B, T, N, H)."""
    if not split:
        return numbers(name, *shape)
    batch, count, length, width = shape
    return numbers(name, batch, length, count, width).swapaxes(1, 2)


def padding(name: str, batch: int, length: int) -> Array:
    return generator(name).random((batch, length)) < 0.7


PADDINGS: dict[str, Callable[[int, int], Array] | None] = {
    "none": None,
    "dense": lambda batch, length: padding("dense", batch, length),
    "a part of longer rows": lambda batch, length: padding("part", batch, length + 5)[:, 5:],
    "columns": lambda batch, length: padding("columns", length, batch).T,
    "one row for all": lambda batch, length: padding("one", 1, length),
}
BANDS = [EVERYTHING, Band(3, 0), Band(1, 4), Band(None, 0), Band(2, None)]


# ---- attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("band", BANDS, ids=str)
@pytest.mark.parametrize("padded", PADDINGS)
@pytest.mark.parametrize("split", [False, True])
def test_attention_tells_its_kernel_everything(launched: list[str], band: Band, padded: str, split: bool) -> None:
    """Of one group of keys and of two, wherever they lie."""
    make = PADDINGS[padded]
    q = heads("q", 2, 6, 7, 12, split=split)
    groups = []
    for name, length, start, rule in (("own", 9, 3, band), ("encoder", 5, 0, EVERYTHING)):
        kv = KeyValue(heads(f"{name} k", 2, 2, length, 12, split=split), heads(f"{name} v", 2, 2, length, 12), start)
        groups.append(Keys(kv, None if make is None else make(2, length), rule))
    for seen_groups in (groups[:1], groups, groups[::-1]):
        launched.clear()
        for cap in (None, 1.5):
            found, expected = (
                attend(nx, q, seen_groups, scale=0.3, cap=cap, first_query=5) for nx in (fast(), Numerics("float32"))
            )
            close(np.asarray(found), np.asarray(expected), rtol=2e-5, atol=2e-6)
        assert launched == ["flash_float"] * 2


def test_keys_of_a_longer_array_are_read_in_place(launched: list[str]) -> None:
    whole = numbers("whole", 2, 1, 40, 8)
    kv = KeyValue(whole[:, :, 7:19], whole[:, :, 20:32], 7)
    q = numbers("q", 2, 4, 3, 8)
    found, expected = (attend(nx, q, [Keys(kv)], scale=0.5, first_query=11) for nx in (fast(), Numerics("float32")))
    close(np.asarray(found), np.asarray(expected), rtol=2e-5, atol=2e-6)
    assert launched == ["flash_float"]


def call(nx: Numerics, **changed: Any) -> Array:
    given: dict[str, Any] = {"width": 8, "dtype": "float32", "band": EVERYTHING, "groups": 1, "scale": 0.5, "keys": 6}
    given |= changed
    q = numbers("q", 1, 2, 5, given["width"], dtype=given["dtype"])
    k, v = (numbers(n, 1, 1, given["keys"], given["width"], dtype=given["dtype"]) for n in "kv")
    groups = [Keys(KeyValue(k, v), None, given["band"])] * given["groups"]
    return attend(nx, q, groups, scale=given["scale"], cap=given.get("cap"))


def test_what_is_covered_is_the_kernels_affair(launched: list[str]) -> None:
    call(fast())
    call(fast(profile=FAST), width=128, groups=2, band=Band(None, 0))
    call(fast(profile=FLASH), keys=1024)
    assert launched == ["flash_float"] * 3


@pytest.mark.parametrize(
    ("profile", "changed"),
    [
        (EAGER, {}),  # rounds its scores
        (RUNNING, {}),
        (EXACT, {"dtype": "float64"}),
        (SDPA, {"width": 136}),  # too wide for float32
        (SDPA, {"band": Given(mask=padding("given", 5, 6)[None])}),
        (SDPA, {"groups": 3}),
        (SDPA, {"scale": -0.5}),
        (SDPA, {"keys": 2000}),  # ten rows of queries: one block alone would go through all of these
    ],
    ids=str,
)
def test_the_rest_is_the_definitions(launched: list[str], profile: Profile, changed: dict[str, Any]) -> None:
    dtype: DType = "float64" if changed.get("dtype") == "float64" else "float32"
    same_bits(call(fast(dtype, profile), **changed), call(Numerics(dtype, profile), **changed))
    assert not launched


@pytest.mark.parametrize(
    ("width", "rows", "kernel", "size"),
    [
        (8, 64, "flash_half", 128),
        (64, 64, "flash_hopper", 128),
        (72, 4096, "flash_hopper", 128),
        (96, 4096, "flash_half", 128),
        (192, 64, "flash_half", 64),
        (192, 4096, "flash_half", 128),
        (256, 1, "flash_hopper", 128),
    ],
)
def test_the_instance_of_a_width(launched: list[str], width: int, rows: int, kernel: str, size: int) -> None:
    flash = sys.modules["t5g2ref.backend.cuda.flash"]
    found = flash.fitting(0, np.dtype("float16"), width, rows, 1, True)
    assert (found.name, found.rows) == (kernel, size)
    assert found.shared <= 227 << 10  # bytes that a block may have
    assert found.types.startswith("f16, ")


def test_rows_that_are_not_aligned_have_the_kernel_that_reads_any(launched: list[str]) -> None:
    flash = sys.modules["t5g2ref.backend.cuda.flash"]
    x = numbers("x", 1, 1, 9, 40, dtype="float16")
    assert [flash.aligned([part]) for part in (x, x[..., :16], x[:, :, :1, 3:19], x[..., :12])] == [
        True,
        True,
        False,
        False,
    ]
    assert flash.fitting(0, x.dtype, 64, 100, 1, False).name == "flash_half"


@pytest.mark.parametrize(
    ("dtype", "width", "types"),
    [("float16", 256, "f16, 256, 4, 1, 32"), ("float16", 128, "f16, 128, 8, 1, 64"), ("float32", 128, "")],
)
def test_a_card_with_little_shared_memory(
    launched: list[str], monkeypatch: pytest.MonkeyPatch, dtype: str, width: int, types: str
) -> None:
    """99 KiB, as many of its kind have: smaller tiles; where there is none so small, the definition."""
    flash = sys.modules["t5g2ref.backend.cuda.flash"]
    monkeypatch.setattr(
        flash, "properties", lambda device: {"multiProcessorCount": 4, "sharedMemPerBlockOptin": 99 << 10}
    )
    monkeypatch.setattr(flash, "capability", lambda device: 89)
    flash.fitting.cache_clear()
    found = flash.fitting(0, np.dtype(dtype), width, 4096, 1, True)
    assert (found.types if found else "") == types
    if not types:
        same_bits(call(fast(), width=width), call(Numerics("float32"), width=width))
        assert not launched
    flash.fitting.cache_clear()


@pytest.mark.parametrize("wrong", ["batch", "heads", "padding", "ints"])
def test_what_a_kernel_would_read_beyond_is_left(launched: list[str], wrong: str) -> None:
    """Keys for another batch or number of heads, and padding that is shorter or no bool: never launched."""
    q, kv = numbers("q", 2, 2, 5, 8), numbers("k", 1 if wrong == "batch" else 2, 1, 6, 8)
    other = numbers("o", 2, 2, 6, 8) if wrong == "heads" else kv
    valid = np.ones((2, 5), bool) if wrong == "padding" else np.ones((2, 6), int) if wrong == "ints" else None
    with contextlib.suppress(ValueError, IndexError):  # some of these the definition refuses
        attend(fast(), q, [Keys(KeyValue(kv, kv), valid), Keys(KeyValue(other, other))], scale=1.0)
    assert not launched


def test_an_older_card_has_the_older_kernel(launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flash = sys.modules["t5g2ref.backend.cuda.flash"]
    monkeypatch.setattr(flash, "capability", lambda device: 80)
    assert flash.fitting(0, np.dtype("float16"), 72, 101, 1, True).name == "flash_half"
    monkeypatch.setattr(flash, "capability", lambda device: 75)
    same_bits(call(fast()), call(Numerics("float32")))
    assert not launched


# ---- the other twins ----------------------------------------------------------------------------------------------


def linears(nx: Numerics, out: int = 8, trace: Trace = OFF) -> list[Array]:
    """A product with a bias, alone and before the two things that the tower does next."""
    x, residual = numbers("x", 2, 3, 16), numbers("residual", 2, 3, out)
    w = Biased(numbers("w", out, 16), numbers("b", out))
    plain = nx.linear(x, w.weight, w.bias)
    added = vision.added_linear(nx, residual, x, w, "linear", trace)
    return [np.asarray(y) for y in (plain, added, vision.activated_linear(nx, x, w, "linear", trace))]


def test_what_follows_a_product_is_one_pass(launched: list[str]) -> None:
    for found, expected in zip(linears(fast()), linears(Numerics("float32", SDPA)), strict=True):
        close(found, expected, rtol=1e-5, atol=1e-6)
    assert launched == [part for then in ("PLAIN", "RESIDUAL", "GELU") for part in ("product", f"fast finish, {then}")]


def test_a_residual_of_one_row_for_all_is_the_definitions(launched: list[str]) -> None:
    """The kernel reads as much of it as there is of the product."""
    x, residual, w = numbers("x", 2, 3, 16), numbers("row", 1, 3, 8), Biased(numbers("w", 8, 16), numbers("b", 8))
    found = vision.added_linear(fast(), residual, x, w, "linear")
    close(np.asarray(found), residual + (x @ w.weight.T + w.bias), rtol=1e-5, atol=1e-6)
    assert launched == ["product", "fast finish, PLAIN"]


def test_who_listens_at_the_product_hears_it(launched: list[str]) -> None:
    """Then the bias is a pass of its own, with the same numbers as ever."""
    heard: dict[str, Array] = {}
    linears(fast(), trace=Trace(lambda name, value: heard.setdefault(name, value)))
    assert list(heard) == ["linear"]
    assert launched == ["product", "fast finish, PLAIN"] * 3 + ["fast gelu_tanh"]


@pytest.mark.parametrize(("profile", "out"), [(RUNNING, 8), (SDPA, 10)], ids=["running", "no whole pieces"])
def test_other_products_are_the_definitions(launched: list[str], profile: Profile, out: int) -> None:
    for found, expected in zip(
        linears(fast("float32", profile), out), linears(Numerics("float32", profile), out), strict=True
    ):
        assert found.shape == expected.shape
    assert "product" not in launched
    assert not [name for name in launched if name.startswith("fast finish")]


def test_rows_that_are_no_whole_pieces_go_to_the_other_twins(launched: list[str]) -> None:
    """Of 16 bytes: a width of 12 in float32 is one, 10 is none, nor are strided rows."""
    nx = fast()
    for x in (numbers("x", 3, 12), numbers("x", 3, 10), numbers("x", 3, 24)[:, :12]):
        weight, bias = numbers("w", x.shape[-1]), numbers("b", x.shape[-1])
        ops.layer_norm(nx, x, weight, bias, 1e-6)
        ops.gelu_tanh(nx, x)
    ops.layer_norm(nx, numbers("wide", 1, 4096), numbers("w", 4096), numbers("b", 4096), 1e-6)
    expected = ["fast layer_norm, 2", "fast gelu_tanh", "layer_norm", "gelu_tanh", "layer_norm", "gelu_tanh"]
    assert launched == [*expected, "layer_norm"]


def test_every_fast_twin_stands_in_for_an_operation(launched: list[str]) -> None:
    named = {
        n for module in (attention, numerics, ops, vision) for n, f in vars(module).items() if hasattr(f, "__wrapped__")
    }
    assert set(sys.modules["t5g2ref.backend.cuda.fast"].FAST) <= named
