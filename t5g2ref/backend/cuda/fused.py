"""The kernels of kernels.cu as twins of the array definitions, with the same arguments and results.

A twin takes the definition first, and leaves to it what its kernel does not cover. Each is one launch where the
definition is five to ten; that, and not the arithmetic, is what a decoding step waits for. For the same reason the
code here counts its microseconds: one branch for dense arrays, types looked up by the dtype itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import cupy
import numpy as np

from t5g2ref.backend.cuda.kernels import launch

Array = Any
Definition = Callable[..., Array]
FAR = 1 << 40  # a bound that no position reaches
WIDEST_HEAD = 1024  # that `turned_norm` holds in shared memory
MOST_STEPS = 4096  # of keys, that `flash_softmax` holds there


def dense(x: Array) -> Array:
    return x if x.flags.c_contiguous else cupy.ascontiguousarray(x)


def rows_of(x: Array) -> tuple[Array, tuple[int, ...]]:
    """x with a dense last axis, and (n1, n2, s0, s1, s2): sizes and strides, in elements, of its rows' three axes."""
    shape = x.shape
    if x.flags.c_contiguous and (len(shape) != 4 or not x.size):
        return x, (1, x.size // max(1, shape[-1]), 0, 0, shape[-1])
    size, strides = x.itemsize, x.strides
    if len(shape) != 4 or (strides[3] != size and shape[3] > 1):
        return rows_of(cupy.ascontiguousarray(x))
    return x, (shape[1], shape[2], strides[0] // size, strides[1] // size, strides[2] // size)


def threads(width: int) -> int:
    """Of a norm's block: one rule for all three, so that taps on and off give the same bits."""
    return 64 if width <= 512 else 256


def norm(name: str, x: Array, vectors: tuple[Array, ...], eps: float) -> Array:
    """rms_norm or layer_norm over the last axis, one block a row."""
    x, rows = rows_of(x)
    shape, dtype = x.shape, x.dtype
    out, width = cupy.ndarray(shape, dtype), shape[-1]
    blocks = x.size // width if width else 0
    launch(name, (dtype,), (x, *rows, width, *vectors, eps, out), blocks, threads(width))
    return out


def rms_norm(definition: Definition, nx: Any, x: Array, weight: Array, eps: float) -> Array:
    return norm("rms_norm", x, (dense(nx.weight(weight)),), eps)


def layer_norm(definition: Definition, nx: Any, x: Array, weight: Array, bias: Array, eps: float) -> Array:
    return norm("layer_norm", x, (dense(nx.weight(weight)), dense(nx.weight(bias))), eps)


def add_norm(
    definition: Definition, nx: Any, residual: Array, x: Array, weight: Array, eps: float, name: str, trace: Any
) -> Array:
    """One kernel, unless someone listens to the norm."""
    if trace.active:
        return definition(nx, residual, x, weight, eps, name, trace)
    x, residual = dense(x), dense(residual)
    out, width = cupy.ndarray(x.shape, x.dtype), x.shape[-1]
    launch(
        "add_norm",
        (x.dtype,),
        (residual, x, width, dense(nx.weight(weight)), eps, out),
        x.size // width,
        threads(width),
    )
    return out


def fitting(x: Array, cos: Array, sin: Array) -> bool:
    """Whether the tables are what the kernels read them as, at (b · T + t) · H: each (B, T, H) for x (B, N, T, H), with
    no axis to be broadcast, and of its type."""
    shape, dtype = (x.shape[0], *x.shape[2:]), x.dtype
    return len(shape) == 3 and cos.shape == shape == sin.shape and cos.dtype == dtype == sin.dtype


def turned_norm(
    definition: Definition,
    nx: Any,
    x: Array,
    weight: Array,
    eps: float,
    rope: tuple[Array, Array],
    name: str,
    trace: Any,
) -> Array:
    """One kernel, unless someone listens to the norm, the head is too wide or the tables are not the kernel's."""
    width = x.shape[-1]
    if trace.active or width > WIDEST_HEAD or not fitting(x, *rope):
        return definition(nx, x, weight, eps, rope, name, trace)
    x, rows = rows_of(x)
    out, tables = cupy.ndarray(x.shape, x.dtype), (dense(rope[0]), dense(rope[1]))
    args = (x, *rows, width, dense(nx.weight(weight)), eps, *tables, out)
    launch("turned_norm", (x.dtype,), args, x.size // width, threads(width))
    return out


def each(name: str, arrays: tuple[Array, ...]) -> Array:
    """An elementwise kernel over dense arrays of one shape and dtype."""
    arrays = tuple(dense(x) for x in arrays)
    first = arrays[0]
    out, size = cupy.ndarray(first.shape, first.dtype), first.size
    launch(name, (first.dtype,), (*arrays, size, out), -(-size // 256), 256)
    return out


def gelu_tanh(definition: Definition, nx: Any, x: Array) -> Array:
    return each("gelu_tanh", (x,))


def gated_gelu(definition: Definition, nx: Any, gate: Array, up: Array, trace: Any) -> Array:
    """One kernel, unless someone listens to the activation."""
    return definition(nx, gate, up, trace) if trace.active else each("gated_gelu", (gate, up))


def biased(definition: Definition, nx: Any, y: Array, bias: Array) -> Array:
    if nx.profile.round_products:
        return definition(nx, y, bias)
    y, out, size = dense(y), cupy.ndarray(y.shape, nx.storage), y.size
    launch("biased", (out.dtype,), (y, dense(nx.weight(bias)), y.shape[-1], size, out), -(-size // 256), 256)
    return out


def rotate(definition: Definition, nx: Any, x: Array, cos: Array, sin: Array) -> Array:
    if not fitting(x, cos, sin):
        return definition(nx, x, cos, sin)
    x, (heads, length, *strides) = rows_of(x)
    out, size = cupy.ndarray(x.shape, x.dtype), x.size
    args = (x, heads, length, *strides, x.shape[-1], dense(cos), dense(sin), size, out)
    launch("rotate", (x.dtype,), args, -(-size // 256), 256)
    return out


def across_ties(definition: Definition, nx: Any, a: Array, b: Array) -> Array:
    if nx.storage.itemsize != 2:
        return definition(nx, a, b)
    products, squares = nx.product(a, b), nx.product(nx.wide(a) ** 2, nx.wide(b) ** 2)
    out, size = cupy.ndarray(products.shape, nx.storage), products.size
    args = (dense(products), dense(squares), 2.0**-23 * a.shape[-1] ** 0.5, size, out)
    launch("across_ties", (out.dtype,), args, -(-size // 256), 256)
    return out


def attention_weights(
    definition: Definition,
    nx: Any,
    q: Array,
    k: Array,
    scale: float,
    cap: float | None,
    allowed: Array | None,
    grouped: tuple[int, ...],
) -> Array:
    """Unfused attention in a half type, from rounded products on in one kernel. Fused attention is its definition, of
    which `scaled_softmax` is the kernel; a softmax that somebody exchanged is not left out."""
    args, ours = (q, k, scale, cap, allowed, grouped), nx.backend.twins.get("masked_softmax") is masked_softmax
    if not nx.profile.round_scores or cap is not None or nx.storage.itemsize != 2 or not ours:
        return definition(nx, *args)
    columns = k.swapaxes(-1, -2)
    products = across_ties(definition, nx, q, columns) if nx.profile.across_ties else nx.matmul(q, columns)
    return softmax(definition, nx, products.reshape(grouped), scale, 0.0, allowed, args)


def masked_softmax(definition: Definition, nx: Any, scores: Array, allowed: Array | None) -> Array:
    return softmax(definition, nx, scores, 1.0, 0.0, allowed, (scores, allowed))


def scaled_softmax(
    definition: Definition, nx: Any, products: Array, scale: float, cap: float | None, allowed: Array | None
) -> Array:
    args, step = (products, scale, cap, allowed), nx.profile.flash_keys
    if not step:
        return softmax(definition, nx, products, scale, cap or 0.0, allowed, args)
    if products.dtype != np.float32 or products.shape[-1] > MOST_STEPS * step or nx.profile.running:
        return definition(nx, *args)
    return softmax(definition, nx, products, scale, cap or 0.0, allowed, args, step)


def softmax(
    definition: Definition,
    nx: Any,
    scores: Array,
    scale: float,
    cap: float,
    allowed: Array | None,
    args: tuple[Any, ...],
    step: int = 0,
) -> Array:
    """Rows of scores (B, …, queries, keys) with allowed (B or 1, 1 …, queries, keys); other shapes are left.

    With `step` keys of a flash kernel's step the weights stay wide.
    """
    shape, masks, queries, mask = scores.shape, 1, 1, 0
    if allowed is not None:
        seen = allowed.shape
        if len(seen) != len(shape) or len(seen) < 3 or seen[-2:] != shape[-2:]:
            return definition(nx, *args)
        if prod(seen[1:-2]) != 1 or seen[0] not in (1, shape[0]):
            return definition(nx, *args)
        masks, queries, mask = seen[0], seen[-2], dense(allowed)
    rows, out = prod(shape[:-1]), cupy.ndarray(shape, scores.dtype if step else nx.storage)
    per_batch = max(1, rows // max(1, shape[0]))
    steps = (step,) if step else ()
    parameters = (dense(scores), mask, masks, queries, per_batch, shape[-1], *steps, scale, cap, out)
    name = "flash_softmax" if step else "masked_softmax"
    launch(name, (scores.dtype, nx.storage), parameters, rows if shape[-1] else 0, 256)
    return out


def visible(definition: Definition, nx: Any, sources: Sequence[Any], first: int, last: int) -> Array | None:
    """One kernel for one or two sources; without a rule there is no mask, as in the definition. A rule that is no
    distance is left to it."""
    if len(sources) > 2 or not all(s.band.by_distance for s in sources):
        return definition(nx, sources, first, last)
    if all(s.valid is None and s.band.back is s.band.ahead is None for s in sources):
        return definition(nx, sources, first, last)
    parts, keys = [], 0
    for source in sources:
        low, high = source.span(first, last)
        keys += high - low
        parts.append(_part(source, low, high))
    batch = max([1, *(source.valid.shape[0] for source in sources if source.valid is not None)])
    out = cupy.ndarray((batch, last - first + 1, keys), bool)
    rest = parts[1] if len(parts) == 2 else (0, 0, 0, 0, 0, 0)
    args = (first, last - first + 1, out.size, *parts[0], *rest, out)
    launch("visible", (), args, -(-out.size // 256), 256)
    return out


def _part(source: Any, low: int, high: int) -> tuple[Any, ...]:
    """low, keys, behind, ahead, stride and first element of `valid` for the keys low … high of a source."""
    band, valid = source.band, source.valid
    bounds = (FAR if band.back is None else band.back, FAR if band.ahead is None else band.ahead)
    if valid is None:
        return (low, high - low, *bounds, 0, 0)
    if valid.shape[1] > 1 and valid.strides[1] != 1:
        valid = cupy.ascontiguousarray(valid)
    stride = valid.strides[0] if valid.shape[0] > 1 else 0
    return (low, high - low, *bounds, stride, valid[:, low - source.kv.start :])


def join(arrays: list[Array], axis: int) -> Array:
    """Two arrays (n0, n1, rows, width) along their rows in one kernel; anything else is CuPy's."""
    if len(arrays) != 2 or axis != 2 or arrays[0].ndim != 4 or arrays[0].dtype != arrays[1].dtype:
        return cupy.concatenate(arrays, axis=axis)
    (a, (*_, a0, a1, a2)), (b, (*_, b0, b1, b2)) = (rows_of(x) for x in arrays)
    n0, n1, above, width = a.shape
    below = b.shape[2]
    out = cupy.ndarray((n0, n1, above + below, width), a.dtype)
    args = (a, above, a0, a1, a2, b, below, b0, b1, b2, n1, width, out.size, out)
    launch("join", (a.itemsize,), args, -(-out.size // 256), 256)
    return out


def running(a: Array, b: Array) -> Array:
    """a (…, M, K) @ b (…, K, N), float32 or float64, as running sums over K in order, each product rounded."""
    batch, (m, depth), n = a.shape[:-2], a.shape[-2:], b.shape[-1]
    pair = (a.reshape(-1, m, depth), b.reshape(-1, depth, n))
    out = cupy.ndarray((*batch, m, n), a.dtype)
    left, right = ((x, *(s // x.itemsize for s in x.strides)) for x in pair)
    name, rows = ("running_few", 16) if m <= 16 else ("running", 64)  # of a block, which has 64 columns
    grid = (-(-n // 64), -(-m // rows), pair[0].shape[0])
    launch(name, (a.dtype,), (*left, *right, m, n, depth, out), grid, 256)
    return out


TWINS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        twin.__name__: twin
        for twin in (
            *(rms_norm, add_norm, turned_norm, layer_norm, gelu_tanh, gated_gelu, biased),
            *(rotate, across_ties, attention_weights, masked_softmax, scaled_softmax, visible),
        )
    }
)
