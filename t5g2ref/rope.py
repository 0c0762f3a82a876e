"""Rotary position embedding (Su et al., 2021), half-split, with a linear factor on the full-attention layers.

A head of width H is H/2 planes: plane i is spanned by elements i and i + H/2 (half-split, not neighbours) and turns
by position · theta^(−2i/H) / factor. Sliding layers have theta 1e4 and no factor; full layers 1e6 and factor 8. These
numbers are config.json's `rope_parameters`, or its older names; `t5g2ref/config/read_ropes.py` reads both. The types
that no release has are in `t5g2ref/rope_types.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from t5g2ref.config import Rope, TextConfig
from t5g2ref.numerics import Array, Numerics, twinned
from t5g2ref.rope_types import attention_factor, by_length, scaled
from t5g2ref.trace import OFF, Trace


def inverse_frequencies(nx: Numerics, rope: Rope, head_dim: int, positions: Array) -> Array:
    """theta^(−2i/H) / factor for the H/2 planes, radians a position; float32 steps where the profile asks.

    Of `positions` two scaled types read the largest; no other does.
    """
    kind: Any = np.float32 if nx.profile.rope_angle == "float32" else np.float64
    exponent = nx.xp.arange(0, head_dim, 2, dtype=kind) / kind(head_dim)
    if rope.scaling is None:
        return (kind(1.0) / kind(rope.theta) ** exponent) / kind(rope.factor)
    length = int(positions.max()) + 1 if by_length(rope) else 0
    return scaled(nx.xp, kind, rope, rope.scaling, exponent, length)


def cos_and_sin(nx: Numerics, rope: Rope, angles: Array) -> tuple[Array, Array]:
    """cos and sin of the planes' angles, for both halves of a head, times the type's factor; then rounded."""
    angles = nx.xp.concatenate([angles, angles], axis=-1)
    cos, sin, factor = nx.xp.cos(angles), nx.xp.sin(angles), attention_factor(rope)
    if factor != 1.0:
        cos, sin = cos * cos.dtype.type(factor), sin * sin.dtype.type(factor)
    return nx.cast(cos), nx.cast(sin)


@twinned
def tables(nx: Numerics, rope: Rope, head_dim: int, positions: Array) -> tuple[Array, Array]:
    """cos and sin of every angle, rounded to the activations' type.

    Shapes: positions (B, T) integer → two arrays (B, T, H) whose second half repeats the first.
    """
    frequencies = inverse_frequencies(nx, rope, head_dim, positions)
    return cos_and_sin(nx, rope, positions[..., None].astype(frequencies.dtype) * frequencies)


def rope_tables(
    nx: Numerics, config: TextConfig, positions: Array, trace: Trace = OFF
) -> dict[str, tuple[Array, Array]]:
    """cos and sin (B, T, H) for each layer type that the stack has."""
    result = {}
    for kind in sorted(set(config.layer_types)):
        cos, sin = tables(nx, config.rope_parameters[kind], config.head_dim, positions)
        result[kind] = (trace(f"rotary_emb.{kind}.cos", cos), trace(f"rotary_emb.{kind}.sin", sin))
    return result


@twinned
def rotate(nx: Numerics, x: Array, cos: Array, sin: Array) -> Array:
    """Turn every head by its row's angles: x (B, N, T, H) with cos, sin (B, T, H) → (B, N, T, H)."""
    half = x.shape[-1] // 2
    turned = nx.xp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    cos, sin = cos[:, None], sin[:, None]  # one table for all heads
    return nx.add(nx.mul(x, cos), nx.mul(turned, sin))
