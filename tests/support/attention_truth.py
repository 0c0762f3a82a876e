"""Attention in float64, calls of it, and how far a kernel of `cupy-fast` may be from it.

The bounds follow from where a kernel rounds. With u that of the type, U that of float32: an exponential is rounded once
before it weighs a value (a small float16 to a multiple of 2⁻²⁴), and the result once. Scores are float32 sums of H
products, each off by (H + 8) U of their sizes together, and e to that power is off by as much; sums over S keys are off
by S U.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers import ROUNDOFF, Array
from hypothesis import strategies as st

from t5g2ref.attention import Keys

U = 2.0**-24
TYPES = ("float32", "bfloat16", "float16")
WIDEST = {"float32": 128, "bfloat16": 256, "float16": 256}


def truth(q: Array, groups: list[Keys], scale: float, cap: float | None, first: int) -> tuple[Array, Array, Array]:
    """On the host in float64: the result, that of the values' sizes, and for each query the most that Σ|q k| · scale
    is among the keys it sees."""
    share = q.shape[1] // groups[0].kv.keys.shape[1]
    k, v = (np.concatenate([getattr(g.kv, n) for g in groups], 2).repeat(share, 1) for n in ("keys", "values"))
    may = np.concatenate([visible(g, q.shape[0], first + np.arange(q.shape[2])) for g in groups], 2)[:, None]
    scores = q @ k.swapaxes(-1, -2) * scale
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    scores = np.where(may, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = powers.sum(axis=-1, keepdims=True)
    weights = powers / np.where(total == 0, 1.0, total)
    sizes = np.where(may, np.abs(q) @ np.abs(k).swapaxes(-1, -2) * scale, 0.0).max(axis=-1, keepdims=True)
    return weights @ v, weights @ np.abs(v), sizes


def visible(group: Keys, batch: int, queries: Array) -> Array:
    distance = group.kv.start + np.arange(group.kv.length) - queries[:, None]
    may = np.ones(distance.shape, bool)
    may &= True if group.band.back is None else distance >= -group.band.back
    may &= True if group.band.ahead is None else distance <= group.band.ahead
    whole: Array = np.broadcast_to(may, (batch, *may.shape))
    return whole if group.valid is None else whole & group.valid[:, None]


def bound(dtype: str, width: int, keys: int, result: Array, sizes: Array, scores: Array) -> Array:
    """See the top of this file."""
    wide: Array = (2 * (width + 8) * U * scores + (keys + 64) * U) * sizes + 64 * U * np.abs(result)
    if dtype == "float32":
        return wide
    u = ROUNDOFF[dtype]
    return 1.01 * (wide + u * (sizes + np.abs(result))) + 2.0**-22 * (dtype == "float16") * (1 + keys)


@st.composite
def calls(draw: Any) -> dict[str, Any]:
    """Shapes and rules of a call."""
    dtype = draw(st.sampled_from(TYPES))
    width = draw(st.sampled_from([8, 10, 16, 30, 40, 64, 72, 80, 96, 128, 136, 200, 256]))
    lengths = st.one_of(st.integers(1, 9), st.sampled_from([63, 64, 65, 127, 128, 129, 200, 333]))
    bounds = st.one_of(st.none(), st.integers(0, 400))
    groups = st.lists(st.tuples(lengths, st.integers(0, 40), bounds, bounds, st.booleans()), min_size=1, max_size=2)
    return {
        "dtype": dtype,
        "width": min(width, WIDEST[dtype]),
        "batch": draw(st.integers(1, 2)),
        "kv_heads": draw(st.sampled_from([1, 2, 8])),
        "sharing": draw(st.sampled_from([1, 2, 3, 4])),
        "length": draw(lengths),
        "first": draw(st.integers(0, 300)),
        "groups": draw(groups),
        "cap": draw(st.sampled_from([None, None, 3.0])),
        "split": draw(st.booleans()),
        "seed": draw(st.integers(0, 999)),
    }
