"""Matrix products by cuBLAS, with every choice that matters spelled out: float32 is never TF32, half types are summed
in float32 and rounded once, the result's type is the caller's, and strided operands are read in place.

CuPy's own `matmul` has no batched bfloat16, copies transposed operands and cannot give a float32 result of half types.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import cupy
import ml_dtypes
import numpy as np
from cupy.cuda import cublas, runtime

Array = Any
DEFAULT = -1  # CUBLAS_GEMM_DEFAULT
EXACT_SUMS = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, on top of the default mode: no TF32
SINGLE, DOUBLE = (np.array([1, 0], kind) for kind in ("float32", "float64"))  # factors, which cuBLAS reads when called
_SINGLE = (cublas.CUBLAS_COMPUTE_32F, SINGLE.ctypes.data, SINGLE[1:].ctypes.data)
_DOUBLE = (cublas.CUBLAS_COMPUTE_64F, DOUBLE.ctypes.data, DOUBLE[1:].ctypes.data)
KINDS = {  # cudaDataType, the type of the sums, and pointers to 1 and 0 in that type
    np.dtype(np.float64): (1, *_DOUBLE),
    np.dtype(np.float32): (0, *_SINGLE),
    np.dtype(np.float16): (2, *_SINGLE),
    np.dtype(ml_dtypes.bfloat16): (14, *_SINGLE),
}
HERE = threading.local()  # `library`: who is called in place of CuPy's cuBLAS, while a graph is recorded
HANDLES: dict[int, list[int]] = defaultdict(list)  # free ones, by device; one serves one thread at a time


def product(a: Array, b: Array, dtype: np.dtype[Any]) -> Array:
    """a (…, M, K) @ b (…, K, N) → (…, M, N) in `dtype`: that of the operands, or float32 for half types.

    Both have one dtype and one batch shape. Row-major C = A B is column-major Cᵀ = Bᵀ Aᵀ, which is what is called for.
    """
    (*batch, m, depth), n = a.shape, b.shape[-1]
    if b.shape[:-1] != (*batch, depth) or a.dtype != b.dtype:
        raise ValueError(f"product of {a.dtype} {a.shape} and {b.dtype} {b.shape}: expected one dtype and (…, K, N)")
    out = cupy.ndarray((*batch, m, n), dtype)
    if not (out.size and depth):
        out.fill(0)
        return out
    kind, sums, one, zero = KINDS[a.dtype]
    a, a_op, a_lead, a_step = operand(a)
    b, b_op, b_lead, b_step = operand(b)
    left, right, result = b.data.ptr, a.data.ptr, (zero, out.data.ptr, KINDS[out.dtype][0], n)
    library = getattr(HERE, "library", cublas)
    with handle() as free:
        shape = (free, b_op, a_op, n, m, depth, one)
        if (count := prod(batch)) == 1:
            library.gemmEx(*shape, left, kind, b_lead, right, kind, a_lead, *result, sums, DEFAULT)
        else:
            pair = (left, kind, b_lead, b_step, right, kind, a_lead, a_step)
            library.gemmStridedBatchedEx(*shape, *pair, *result, m * n, count, sums, DEFAULT)
    return out


@contextmanager
def handle() -> Iterator[int]:
    """A cuBLAS handle that nobody else has meanwhile; that of a recording, where one is under way."""
    library = getattr(HERE, "library", None)
    if library is not None:
        yield library.handle
        return
    free = HANDLES[runtime.getDevice()]
    try:
        found = free.pop()  # atomic, as is append: no thread gets another's
    except IndexError:
        found = new_handle()
    try:
        yield found
    finally:
        free.append(found)


def new_handle() -> int:
    """A new cuBLAS handle of the current device. Our own, so that no mode that others set on theirs (TF32, or sums
    kept in half precision) reaches us."""
    handle: int = cublas.create()
    cublas.setMathMode(handle, EXACT_SUMS)
    return handle


def operand(x: Array) -> tuple[Array, int, int, int]:
    """x, or a dense copy of it: (array, cuBLAS operation, leading dimension, elements from one matrix to the next).

    A row-major matrix is the transpose that the call asks for; one that is dense down its columns gets another one.
    """
    shape, strides, size = x.shape, x.strides, x.itemsize
    rows, columns, down, across = shape[-2], shape[-1], strides[-2] // size, strides[-1] // size
    step = 0 if len(shape) == 2 else _step(shape[:-2], strides[:-2], size)
    if step is not None and (across == 1 or columns == 1) and (down >= columns or rows == 1):
        return x, cublas.CUBLAS_OP_N, down if rows > 1 else columns, step
    if step is not None and (down == 1 or rows == 1) and (across >= rows or columns == 1):
        return x, cublas.CUBLAS_OP_T, across if columns > 1 else rows, step
    return x.copy(order="C"), cublas.CUBLAS_OP_N, columns, rows * columns


def _step(sizes: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int | None:
    """The one stride, in elements, that walks through all batch axes, or None."""
    step, expected = 0, None
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if expected is None:
            step = stride
        elif stride != expected:
            return None
        expected = stride * size
    return step // itemsize
