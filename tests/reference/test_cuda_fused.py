"""What the CUDA backend's twins tell their kernels, what they leave to their definitions; scalars beside half arrays.

All of it runs on NumPy. What the kernels compute is in test_gpu_kernels.py.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import U64, Array, close, generator, same_bits

import t5g2ref.backend.cuda
from t5g2ref import attention, numerics, ops, rope
from t5g2ref.attention import Keys
from t5g2ref.backend import NUMPY, Backend
from t5g2ref.cache import KeyValue
from t5g2ref.dtypes import HALF, DType
from t5g2ref.masks import EVERYTHING, Band, Given
from t5g2ref.numerics import EAGER, EXACT, FLASH, SDPA, TIES, Numerics, Profile
from t5g2ref.trace import OFF

HALVES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


# ---- a stand-in for the device ------------------------------------------------------------------------------------


def memory(x: Array, shape: tuple[int, ...], *strides: int) -> Array:
    """What a kernel finds behind the pointer to x; strides in elements, the last axis dense."""
    return np.lib.stride_tricks.as_strided(x, shape, [step * x.itemsize for step in (*strides, 1)])


def visible_kernel(threads: int, first: int, queries: int, size: int, *rest: Any) -> None:
    """`visible` of kernels.cu, from the same arguments."""
    one, other, out = rest[:6], rest[6:12], rest[12]
    assert (out.size, out.shape[1]) == (size, queries)
    assert threads >= size, "a thread an element"
    places = first + np.arange(queries)
    out[...] = np.concatenate([seen(*source, batch=out.shape[0], queries=places) for source in (one, other)], axis=2)


def seen(low: int, keys: int, behind: int, ahead: int, stride: int, valid: Any, *, batch: int, queries: Array) -> Array:
    """`sees` of kernels.cu for all keys of a source: bool (batch, queries, keys)."""
    distance = low + np.arange(keys) - queries[:, None]
    may = np.broadcast_to((distance >= -behind) & (distance <= ahead), (batch, *distance.shape))
    return may if isinstance(valid, int) else may & memory(valid, (batch, keys), stride)[:, None]


def softmax_kernel(threads: int, x: Array, allowed: Any, masks: int, queries: int, *rest: Any) -> None:
    """`masked_softmax` of kernels.cu, from the same arguments."""
    per_batch, keys, scale, cap, out = rest
    scores = memory(x, (threads // 256, keys), keys) * scale  # a block of 256 a row
    scores = cap * np.tanh(scores / cap) if cap > 0 else scores
    if not isinstance(allowed, int):
        row = np.arange(len(scores))
        of = (row // per_batch if masks > 1 else 0) * queries + row % queries
        scores = np.where(memory(allowed, (masks * queries, keys), keys)[of], scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = powers.sum(axis=-1, keepdims=True)
    out[...] = (powers / np.where(total == 0, 1.0, total)).reshape(out.shape)


KERNELS = {"visible": visible_kernel, "masked_softmax": softmax_kernel}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that `fused.py` launched on a CuPy that has NumPy's arrays; those of KERNELS compute."""
    cupy: Any = ModuleType("cupy")
    cupy.ndarray, cupy.ascontiguousarray = np.zeros, np.ascontiguousarray  # what no kernel wrote may overflow later
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for name in ("kernels", "fused"):  # imported anew, and forgotten afterwards
        monkeypatch.setattr(t5g2ref.backend.cuda, name, None, raising=False)
        monkeypatch.setitem(sys.modules, f"t5g2ref.backend.cuda.{name}", None)
        del sys.modules[f"t5g2ref.backend.cuda.{name}"]
    names: list[str] = []

    def launch(name: str, types: Any, args: tuple[Any, ...], grid: int, threads: int) -> None:
        names.append(name)
        if name in KERNELS:
            KERNELS[name](grid * threads, *args)

    monkeypatch.setattr(importlib.import_module("t5g2ref.backend.cuda.fused"), "launch", launch)
    return names


def twinned(dtype: DType, profile: Profile = EXACT) -> Numerics:
    return Numerics(dtype, profile, NUMPY.with_twins(sys.modules["t5g2ref.backend.cuda.fused"].TWINS))


# ---- twins --------------------------------------------------------------------------------------------------------


def tables_of(shape: tuple[int, ...], dtype: str) -> tuple[Array, Array]:
    cos, sin = (generator(f"{name} {shape}").normal(size=shape).astype(dtype) for name in ("cos", "sin"))
    return cos, sin


OTHER = [
    ((1, 7, 16), "float32"),  # one row of positions for the whole batch
    ((2, 1, 16), "float32"),
    ((2, 7, 1), "float32"),
    ((2, 7, 16), "float64"),
]


def test_tables_that_fit_are_the_kernels_affair(launched: list[str]) -> None:
    x, weight = generator("x").normal(size=(2, 3, 7, 16)).astype("float32"), np.zeros(16, "float32")
    tables = tables_of((2, 7, 16), "float32")
    rope.rotate(twinned("float32"), x, *tables)
    attention.turned_norm(twinned("float32"), x, weight, 1e-6, tables, "q_norm", OFF)
    assert launched == ["rotate", "turned_norm"]


@pytest.mark.parametrize(("shape", "dtype"), OTHER)
@pytest.mark.parametrize("which", ["both", "cos", "sin"])
def test_other_tables_are_the_definitions(launched: list[str], shape: tuple[int, ...], dtype: str, which: str) -> None:
    """A kernel reads them at (b · T + t) · H in the activations' type: beyond the end of these, or other numbers."""
    x = generator("x").normal(size=(2, 3, 7, 16)).astype("float32")
    other, good = tables_of(shape, dtype), tables_of((2, 7, 16), "float32")
    tables = (other[0] if which != "sin" else good[0], other[1] if which != "cos" else good[1])
    expected = rope.rotate(Numerics("float32"), x, *tables)
    same_bits(rope.rotate(twinned("float32"), x, *tables), expected)
    assert not launched
    weight = np.zeros(16, "float32")
    attention.turned_norm(twinned("float32"), x, weight, 1e-6, tables, "q_norm", OFF)
    assert launched == ["rms_norm"]


def test_one_head_without_its_axis_is_the_definitions(launched: list[str]) -> None:
    x, tables = np.ones((2, 7, 16), "float32"), tables_of((2, 16), "float32")
    same_bits(rope.rotate(twinned("float32"), x, *tables), rope.rotate(Numerics("float32"), x, *tables))
    assert not launched


def padding(name: str, batch: int, length: int) -> Array:
    return generator(name).random((batch, length)) < 0.7


def source(length: int, start: int, band: Band, valid: Array | None) -> Keys:
    nothing = np.zeros((2, 1, length, 4))
    return Keys(KeyValue(nothing, nothing, start), valid, band)


PADDINGS: dict[str, tuple[Array | None, Array | None]] = {  # of nine own keys and of five of the encoder's
    "none": (None, None),
    "dense": (padding("own", 2, 9), padding("encoder", 2, 5)),
    "own alone": (padding("own", 2, 9), None),
    "encoder alone": (None, padding("encoder", 2, 5)),
    "a part of longer rows": (padding("own", 2, 12)[:, 3:], padding("encoder", 2, 8)[:, :5]),
    "columns": (padding("own", 9, 2).T, padding("encoder", 5, 2).T),
    "one row for all": (padding("own", 1, 9), padding("encoder", 2, 5)),
}


@pytest.mark.parametrize("band", [EVERYTHING, Band(2, 0), Band(1, 3), Band(None, 0), Band(4, None)], ids=str)
@pytest.mark.parametrize("padded", PADDINGS)
def test_visible_tells_its_kernel_the_rule(launched: list[str], band: Band, padded: str) -> None:
    """Of one source and of two: where its keys begin, how far it is seen, where its padding lies in memory."""
    own, encoder = source(9, 3, band, PADDINGS[padded][0]), source(5, 0, EVERYTHING, PADDINGS[padded][1])
    for sources in ([own], [own, encoder], [encoder, own]):
        launched.clear()
        found, expected = (attention.visible(nx, sources, 6, 11) for nx in (twinned("float32"), Numerics("float32")))
        assert launched == ([] if expected is None else ["visible"])
        assert (found is None) == (expected is None)
        if expected is not None:
            same_bits(found, expected)


def test_a_mask_that_is_given_is_the_definitions(launched: list[str]) -> None:
    """Its bounds are none, which would show every key."""
    mask = Given(mask=padding("given", 6, 9)[None], first=6)
    sources = [source(9, 0, mask, None), source(5, 0, EVERYTHING, None)]
    found, expected = (attention.visible(nx, sources, 6, 11) for nx in (twinned("float32"), Numerics("float32")))
    same_bits(found, expected)
    assert not found.all()
    assert not launched


def test_more_sources_than_two_are_the_definitions(launched: list[str]) -> None:
    three = [source(4, 0, Band(1, 0), padding(name, 2, 4)) for name in ("one", "two", "three")]
    same_bits(attention.visible(twinned("float32"), three, 1, 3), attention.visible(Numerics("float32"), three, 1, 3))
    assert not launched


SCORES = (2, 3, 4, 5, 7)  # B, K, G, queries, keys


def softmaxes(nx: Numerics, scores: Array, allowed: Array | None) -> list[Array]:
    """The three forms that the model asks for."""
    masked = ops.masked_softmax(nx, scores, allowed)
    return [masked, *(ops.scaled_softmax(nx, scores, 0.3, cap, allowed) for cap in (None, 2.5))]


@pytest.mark.parametrize("shape", [None, (2, 1, 1, 5, 7), (1, 1, 1, 5, 7)], ids=str)
@pytest.mark.parametrize("dense", [True, False])
def test_masks_that_fit_are_the_kernels_affair(launched: list[str], shape: tuple[int, ...] | None, dense: bool) -> None:
    scores, allowed = generator("scores").normal(0, 4, SCORES), None
    if shape is not None:
        allowed = generator("allowed").random((*shape[:-2], 7, 5)) < 0.7
        allowed[0, 0, 0, :, 3] = False  # a query that may see nothing gets zeros
        allowed = np.ascontiguousarray(allowed.swapaxes(-1, -2)) if dense else allowed.swapaxes(-1, -2)
    scores = scores if dense else scores.swapaxes(1, 2)
    found, expected = (softmaxes(nx, scores, allowed) for nx in (twinned("float64"), Numerics("float64")))
    assert launched == ["masked_softmax"] * 3
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, rtol=64 * U64)


OTHER_MASKS = [
    (SCORES, (7,)),
    (SCORES, (5, 7)),
    (SCORES, (1, 1, 5, 7)),  # one axis less
    (SCORES, (1, 2, 1, 1, 5, 7)),  # and one more
    (SCORES, (2, 1, 1, 1, 7)),  # the same keys for every query
    (SCORES, (2, 1, 1, 5, 1)),
    (SCORES, (2, 3, 1, 5, 7)),  # by kv head
    (SCORES, (2, 1, 4, 5, 7)),  # by query head
    ((1, *SCORES[1:]), (2, 1, 1, 5, 7)),  # the scores of one row under the masks of two
    ((5, 7), (5, 7)),  # no batch
]


@pytest.mark.parametrize(("shape", "mask"), OTHER_MASKS, ids=str)
def test_other_masks_are_the_definitions(launched: list[str], shape: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """A kernel finds a row's mask by its batch row and its query alone: of these it would read another's, or beyond."""
    scores, allowed = generator("scores").normal(0, 4, shape), generator("allowed").random(mask) < 0.7
    found, expected = (softmaxes(nx, scores, allowed) for nx in (twinned("float64"), Numerics("float64")))
    assert not launched
    for ours, theirs in zip(found, expected, strict=True):
        same_bits(ours, theirs)


@HALVES
def test_a_flash_kernel_s_roundings_are_the_definitions(launched: list[str], dtype: DType) -> None:
    """FLASH rounds a product before its bias, where a kernel rounds once; its softmax has a kernel of its own."""
    scores, bias = (generator(name).normal(0, 4, shape).astype("float32") for name, shape in (("y", SCORES), ("b", 7)))
    ours, theirs = twinned(dtype, FLASH), Numerics(dtype, FLASH)
    same_bits(*(numerics.biased(nx, scores, nx.array(bias)) for nx in (ours, theirs)))
    assert not launched
    for profile in (FLASH, SDPA):
        ops.scaled_softmax(twinned(dtype, profile), scores, 0.3, None, None)
    numerics.biased(twinned(dtype, SDPA), scores, theirs.array(bias))
    assert launched == ["flash_softmax", "masked_softmax", "biased"]


# ---- scalars beside native half arrays ----------------------------------------------------------------------------


class Native(Backend):
    """NumPy with half arrays that compute, as CuPy's do: a Python number beside one takes its type first."""

    name, native_half = "native", True

    def product(self, a: Array, b: Array, dtype: np.dtype[Any]) -> Array:
        wide = np.float64 if a.dtype == np.float64 else np.float32
        return np.matmul(a.astype(wide), b.astype(wide)).astype(dtype)


def same_numbers(native: Array, emulated: Array, dtype: str) -> None:
    assert native.dtype == HALF[dtype]
    same_bits(native.astype(np.float32), emulated)


@HALVES
@pytest.mark.parametrize("cap", [30.1, 0.7])
def test_softcap_does_not_round_its_cap(dtype: DType, cap: float) -> None:
    here, there = Numerics(dtype, EAGER), Numerics(dtype, EAGER, Native())
    x = generator("softcap").normal(0, 40, 4000)
    same_numbers(ops.softcap(there, there.array(x), cap), ops.softcap(here, here.array(x), cap), dtype)
    half = np.asarray(cap, HALF[dtype]).astype(np.float32)
    assert (ops.softcap(here, here.array(x), cap) != ops.softcap(here, here.array(x), float(half))).any()


@HALVES
@pytest.mark.parametrize("cap", [None, 50.3])
@pytest.mark.parametrize("profile", [EAGER, TIES], ids=lambda p: p.name)
def test_unfused_attention_does_not_round_its_scale(dtype: DType, cap: float | None, profile: Profile) -> None:
    here, there = Numerics(dtype, profile), Numerics(dtype, profile, Native())
    q, k = (generator(name).normal(0, 4, (2, 1, 5, 16)) for name in ("queries", "keys"))
    scale = 10**-0.5  # not a power of two, as 256 ** -0.5 is in the releases

    def found(nx: Numerics, scale: float) -> Array:
        return attention.attention_weights(nx, nx.array(q), nx.array(k), scale, cap, None, (2, 1, 1, 5, 5))

    same_numbers(found(there, scale), found(here, scale), dtype)
    half = np.asarray(scale, HALF[dtype]).astype(np.float32)
    assert (found(here, scale) != found(here, float(half))).any()
