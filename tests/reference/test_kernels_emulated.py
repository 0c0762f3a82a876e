"""Kernels of kernels.cu without a card, on the CPU in emulation: a flash kernel's softmax, and sums in order."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from cupy_of_numpy import Memory, installed
from emulated import as_c, library, needs_compiler
from helpers import Array, close, same_bits

from t5g2ref.backend import NUMPY
from t5g2ref.numerics import FLASH, Numerics
from t5g2ref.ops import _masked, flash_softmax

pytestmark = needs_compiler
KINDS = {"float32": "float", "bfloat16": "bf16"}
DOUBLE = "static inline double __longlong_as_double(long long x) { double y; memcpy(&y, &x, 8); return y; }\n"


@cache
def kernel(name: str) -> Any:
    """An instance of a kernel: a function of its grid, the threads of a block, and its arguments."""
    entry = (
        '\nextern "C" void run(const int* grid, int threads, void** values) '
        f"{{ emu::launch_with({name}, grid, threads, 0, values); }}"
    )
    code = files("t5g2ref.backend.cuda").joinpath("kernels.cu").read_text(encoding="utf-8")
    run = library(DOUBLE + code + entry).run

    def launch(grid: tuple[int, ...], threads: int, args: tuple[Any, ...]) -> None:
        values = [as_c(x) for x in args]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(x) for x in values))
        run((ctypes.c_int * 3)(*grid), threads, pointers)

    return launch


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`fused.scaled_softmax`, whose kernel is emulated."""
    _, fused, _, _ = installed(monkeypatch)

    def launch(name: str, types: tuple[Any, Any], args: tuple[Any, ...], grid: int, threads: int) -> None:
        assert (name, np.dtype(types[0])) == ("flash_softmax", np.float32)
        kind = "float" if types[1] == np.float32 else "bf16"
        kernel(f"flash_softmax<float, {kind}>")((grid, 1, 1), threads, args)

    monkeypatch.setattr(fused, "launch", launch)
    return fused.scaled_softmax


class Native(Numerics):
    """A half type as a device stores it: the twin asks for `storage` alone."""

    @property
    def storage(self) -> Any:  # type: ignore[override]
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)


def never(*arguments: Any) -> Any:
    raise AssertionError("the definition was asked")


def asked(keys: int, masked: bool) -> tuple[Array, Any]:
    rng = np.random.default_rng(keys)
    scores = rng.normal(0, 6, (2, 2, 1, 3, keys)).astype(np.float32)
    scores[..., -1] += 5.0  # so that the largest so far grows
    allowed = rng.random((2, 1, 1, 3, keys)) < 0.6
    allowed[0, 0, 0, 1] = False  # a query that may see nothing gets zeros
    allowed[1, 0, 0, 2, : keys // 2] = False  # and one whose first steps show nothing
    return scores, allowed if masked else None


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("keys", "step"), [(1, 64), (63, 64), (130, 64), (700, 512), (700, 48)])
def test_it_is_the_definition(dtype: Any, cap: float | None, masked: bool, keys: int, step: int, twin: Any) -> None:
    profile = replace(FLASH, flash_keys=step)
    nx, native = Numerics(dtype, profile), Native(dtype, profile)
    products, allowed = asked(keys, masked)
    scores = products * np.float32(0.5)
    scores = scores if cap is None else np.float32(cap) * np.tanh(scores / np.float32(cap))
    expected = flash_softmax(nx, _masked(nx, scores, allowed))
    found = twin(never, native, products.view(Memory), 0.5, cap, None if allowed is None else allowed.view(Memory))
    # An exponential that is a few ulps off may round to the neighbour in bfloat16: one ulp of it, 2⁻⁷.
    loose = 2.0**-7 if dtype == "bfloat16" else 64 * 2.0**-24
    close(np.asarray(found), expected, rtol=loose, atol=1e-30)
    off = np.abs(np.asarray(found) - expected) > 64 * 2.0**-24 * np.abs(expected)
    assert off.mean() < 0.02
    assert masked == bool((np.asarray(found)[0, :, :, 1] == 0).all())


def test_a_nan_shows_in_its_row_alone(twin: Any) -> None:
    products = np.zeros((1, 1, 2, 100), np.float32)
    products[0, 0, 0, 70] = np.nan
    found = twin(never, Native("float32", FLASH), products.view(Memory), 1.0, None, None)
    assert np.isnan(np.asarray(found)[0, 0, 0]).all()
    close(np.asarray(found)[0, 0, 1], np.full(100, 0.01, np.float32), rtol=1e-6)


@pytest.mark.parametrize("why", ["float64", "too many steps", "sums in order"])
def test_what_it_does_not_cover_is_left_to_the_definition(why: str, twin: Any) -> None:
    profile = replace(FLASH, flash_keys=1 if why == "too many steps" else 64, running=why == "sums in order")
    products = np.zeros((1, 1, 1, 5000), np.float64 if why == "float64" else np.float32)
    answer = twin(lambda *_: "asked", Native("float32", profile), products.view(Memory), 1.0, None, None)
    assert answer == "asked"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 5, 1), (16, 130, 66), (17, 64, 3), (70, 37, 129)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_running_sums_are_taken_in_order(
    dtype: str, shape: tuple[int, int, int], transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, wherever copies to shared memory end: here as late as they may."""
    rows, depth, columns = shape
    _, fused, _, _ = installed(monkeypatch)
    names = []

    def launch(name: str, types: tuple[Any], args: tuple[Any, ...], grid: tuple[int, ...], threads: int) -> None:
        names.append(name)
        kernel(f"{name}<{'float' if types[0] == np.float32 else 'double'}>")(grid, threads, args)

    monkeypatch.setattr(fused, "launch", launch)
    rng = np.random.default_rng(depth)
    a = rng.normal(size=(2, rows, depth)).astype(dtype)
    b = rng.normal(size=(2, columns, depth) if transposed else (2, depth, columns)).astype(dtype)
    b = b.swapaxes(1, 2) if transposed else b
    same_bits(np.asarray(fused.running(a.view(Memory), b.view(Memory))), NUMPY.running(a, b))
    assert names == ["running_few" if rows <= 16 else "running"]


def test_a_twin_asks_for_no_more_steps_than_its_kernel_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fused, _, _ = installed(monkeypatch)
    code = files("t5g2ref.backend.cuda").joinpath("kernels.cu").read_text(encoding="utf-8")
    assert f"const int MOST_STEPS = {fused.MOST_STEPS};" in code
