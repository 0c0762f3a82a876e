"""The twins that `cupy-fast` has beside those of fused.py: legal rounding points, another order, fewer passes.

A twin gets the definition first, as in fused.py. What its kernel does not cover goes to the twin that fused.py has of
it, where there is one, and else to the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import cupy

from t5g2ref.backend.cuda import blas, flash, fused
from t5g2ref.backend.cuda.kernels import TYPES
from t5g2ref.trace import OFF, Trace

Array = Any
Definition = Callable[..., Array]
PIECE = 16  # bytes that a thread reads at once
HELD = (2, 5, 8)  # pieces of a row that a thread of a warp may hold
THREADS = 256


def affine(definition: Definition, nx: Any, rows: Array, columns: Array, bias: Array) -> Array:
    """The product, rounded, and one pass in its place."""
    bias = nx.weight(bias)
    if not simple(nx, rows, bias):
        return definition(nx, rows, columns, bias)
    return finished("PLAIN", blas.product(rows, columns, rows.dtype), bias)


def added_linear(
    definition: Definition, nx: Any, residual: Array, x: Array, w: Any, name: str, trace: Trace = OFF
) -> Array:
    """`affine` and the residual's sum in one pass, unless someone listens in between."""
    bias = nx.weight(w.bias)
    alike = residual.shape == (*x.shape[:-1], *bias.shape) and residual.dtype == x.dtype
    if trace.active or not simple(nx, x, bias) or not alike or not whole(residual):
        return definition(nx, residual, x, w, name, trace)
    return finished("RESIDUAL", product(nx, x, w), bias, residual)


def activated_linear(definition: Definition, nx: Any, x: Array, w: Any, name: str, trace: Trace = OFF) -> Array:
    """`affine` and the activation in one pass, unless someone listens in between."""
    bias = nx.weight(w.bias)
    if trace.active or not simple(nx, x, bias):
        return definition(nx, x, w, name, trace)
    return finished("GELU", product(nx, x, w), bias)


def simple(nx: Any, x: Array, bias: Array) -> bool:
    """Whether a product of x has sums in no particular order, and a result of this bias's type in whole pieces."""
    return not nx.profile.running and bias.dtype == x.dtype and x.size > 0 and whole(bias)


def product(nx: Any, x: Array, w: Any) -> Array:
    """x (…, in) times the weight (out, in), of x's type: (…, out)."""
    weight = nx.weight(w.weight)
    rows = blas.product(x.reshape(-1, x.shape[-1]), weight.T, x.dtype)
    return rows.reshape(*x.shape[:-1], weight.shape[0])


def finished(then: str, y: Array, bias: Array, residual: Array | int = 0) -> Array:
    """y + bias and what comes then, in y's place: see fast.cu."""
    size = pieces(y)
    launch("finish", y.dtype, f", {then}", (y, bias, pieces(bias), residual, size), -(-size // THREADS))
    return y


def gelu_tanh(definition: Definition, nx: Any, x: Array) -> Array:
    if not whole(x):
        return fused.gelu_tanh(definition, nx, x)
    out, size = cupy.ndarray(x.shape, x.dtype), pieces(x)
    launch("gelu_tanh", x.dtype, "", (x, size, out), -(-size // THREADS))
    return out


def layer_norm(definition: Definition, nx: Any, x: Array, weight: Array, bias: Array, eps: float) -> Array:
    weight, bias = nx.weight(weight), nx.weight(bias)
    width = pieces(weight)
    held = next((most for most in HELD if width <= 32 * most), None)
    if held is None or not all(whole(array) and array.dtype == x.dtype for array in (x, weight, bias)):
        return fused.layer_norm(definition, nx, x, weight, bias, eps)
    out, rows = cupy.ndarray(x.shape, x.dtype), x.size // weight.size
    args = (x, width, rows, weight, bias, eps, out)
    launch("layer_norm", x.dtype, f", {held}", args, -(-rows // (THREADS // 32)))
    return out


def whole(x: Array) -> bool:
    """Whether an array's rows are whole pieces, one behind the other."""
    if x.dtype.itemsize == 8 or not x.size or not x.flags.c_contiguous:
        return False
    return bool(x.data.ptr % PIECE == 0 and x.shape[-1] * x.itemsize % PIECE == 0)


def pieces(x: Array) -> int:
    count: int = x.nbytes // PIECE
    return count


def launch(name: str, dtype: Any, rest: str, args: tuple[Any, ...], blocks: int) -> None:
    """Queue a kernel of fast.cu."""
    function(f"{name}<{TYPES[dtype]}{rest}>", cupy.cuda.runtime.getDevice())((blocks,), (THREADS,), args)


@cache
def function(spelled: str, device: int) -> Any:
    """A kernel of fast.cu, compiled for a device."""
    code = files(__package__).joinpath("fast.cu").read_text(encoding="utf-8")
    with cupy.cuda.Device(device):
        module = cupy.RawModule(code=code, options=("--std=c++17",), name_expressions=(spelled,))
        return module.get_function(spelled).kernel


FAST: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "attend": flash.attend,
        **{twin.__name__: twin for twin in (affine, added_linear, activated_linear, gelu_tanh, layer_norm)},
    }
)
