"""What the CUDA backend's twins leave to their definitions, and scalars beside native half arrays; both on NumPy.

What the kernels compute is in test_gpu_kernels.py.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import Array, generator, same_bits

import t5g2ref.backend.cuda
from t5g2ref import attention, ops, rope
from t5g2ref.backend import NUMPY, Backend
from t5g2ref.dtypes import HALF, DType
from t5g2ref.numerics import EAGER, Numerics
from t5g2ref.trace import OFF

HALVES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


# ---- twins --------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were launched, by `fused.py` on a CuPy that has NumPy's arrays and no kernels."""
    cupy: Any = ModuleType("cupy")
    cupy.ndarray, cupy.ascontiguousarray = np.empty, np.ascontiguousarray
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for name in ("kernels", "fused"):  # imported anew, and forgotten afterwards
        monkeypatch.setattr(t5g2ref.backend.cuda, name, None, raising=False)
        monkeypatch.setitem(sys.modules, f"t5g2ref.backend.cuda.{name}", None)
        del sys.modules[f"t5g2ref.backend.cuda.{name}"]
    names: list[str] = []
    fused = importlib.import_module("t5g2ref.backend.cuda.fused")
    monkeypatch.setattr(fused, "launch", lambda name, *_: names.append(name))
    return names


def twinned(dtype: DType) -> Numerics:
    return Numerics(dtype, backend=NUMPY.with_twins(sys.modules["t5g2ref.backend.cuda.fused"].TWINS))


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
def test_unfused_attention_does_not_round_its_scale(dtype: DType, cap: float | None) -> None:
    here, there = Numerics(dtype, EAGER), Numerics(dtype, EAGER, Native())
    q, k = (generator(name).normal(0, 4, (2, 1, 5, 16)) for name in ("queries", "keys"))
    scale = 10**-0.5  # not a power of two, as 256 ** -0.5 is in the releases

    def found(nx: Numerics, scale: float) -> Array:
        return attention.attention_weights(nx, nx.array(q), nx.array(k), scale, cap, None, (2, 1, 1, 5, 5))

    same_numbers(found(there, scale), found(here, scale), dtype)
    half = np.asarray(scale, HALF[dtype]).astype(np.float32)
    assert (found(here, scale) != found(here, float(half))).any()
