"""What oracles make of attention's scores by the kernels of score_rows.cu, where a device computes.

A picture's scores are gigabytes in float64, and a formula over arrays goes through them a dozen times. Each function
returns None where no kernel is for the call: the formula is the definition.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from conformance.arrays import has_kernels, kernels

Array = Any
THREADS = 256


def narrow_softmax(
    xp: Any, products: Array, scale: float, cap: float | None, allowed: Array | None, half: str
) -> Array | None:
    """Softmax of products (B, …, queries, keys) · scale, rounded to the half type at every step."""
    if (rows := _rows(xp, products, allowed)) is None:
        return None
    return _made(xp, "narrow_softmax", (products,), rows, (scale, cap or 0.0, np.int32(half == "bfloat16")))


def counted_softmax(
    xp: Any, products: Array, scale: float, cap: float | None, allowed: Array | None, hidden: float
) -> Array | None:
    """Softmax of products · scale, in which a key that is not allowed has the score `hidden`."""
    if (rows := _rows(xp, products, allowed)) is None:
        return None
    return _made(xp, "counted_softmax", (products,), rows, (scale, cap or 0.0, hidden))


def weights_bound(
    xp: Any,
    products: Array,
    sizes: Array,
    scale: float,
    cap: float | None,
    allowed: Array | None,
    off: tuple[float, float, float, float],
) -> Array | None:
    """The bound of the error of softmax's weights; `off` is by_score, by_size, fixed and smallest of score_rows.cu."""
    if (rows := _rows(xp, products, allowed)) is None:
        return None
    return _made(xp, "weights_bound", (products, sizes), rows, (scale, cap or 0.0, *off))


def _rows(xp: Any, products: Array, allowed: Array | None) -> tuple[Any, ...] | None:
    """(mask, masks, queries, rows of one batch row, keys) as the kernels read them; None for what they are not for."""
    shape = products.shape
    if not has_kernels(xp) or products.dtype != np.float64 or not products.size or len(shape) < 3:
        return None
    counts = prod(shape[1:-1]), shape[-1]
    if allowed is None:
        return 0, 1, 1, *counts
    seen = allowed.shape
    if len(seen) != len(shape) or seen[-2:] != shape[-2:] or prod(seen[1:-2]) != 1 or seen[0] not in (1, shape[0]):
        return None
    return xp.ascontiguousarray(allowed), seen[0], seen[-2], *counts


def _made(xp: Any, name: str, arrays: tuple[Array, ...], rows: tuple[Any, ...], numbers: tuple[Any, ...]) -> Array:
    products = arrays[0]
    mask, *counts = rows
    out = xp.empty(products.shape, np.float64)
    dense = [xp.ascontiguousarray(array) for array in arrays]
    exact = [x if isinstance(x, np.integer) else np.float64(x) for x in numbers]
    kernel = kernels(xp, int(xp.cuda.runtime.getDevice()), __package__, "score_rows.cu").get_function(name)
    kernel((prod(products.shape[:-1]),), (THREADS,), (*dense, mask, *map(np.int64, counts), *exact, out))
    return out
