"""Faults near D02 (the unrounded scale of embeddings) and D27 (RoPE's angles in a half type)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from conformance.defects.injection import Injection, operation
from conformance.defects.near.shortened import bf16, bits, fp16, near
from t5g2ref.numerics import Array, Numerics
from t5g2ref.rope import cos_and_sin, inverse_frequencies

Scaled = Callable[[Numerics, Array, Array], Array]
Angles = Callable[[Numerics, Array, Array], Array]
EMBEDDED, TABLES = "encoder.text_model.embed_tokens", "encoder.text_model.rotary_emb.*"


def embedding(scaled: Scaled) -> Injection:
    """Another scale; it is given wide rows and √hidden."""

    def twin(_: Any, nx: Numerics, w: Any, ids: Array, eoi_id: int) -> Array:
        rows = nx.wide(nx.array(w.weight[ids]))
        root = nx.xp.asarray(math.sqrt(rows.shape[-1]), rows.dtype)
        found = nx.cast(scaled(nx, rows, root))
        return nx.cast(nx.xp.where((ids == eoi_id)[..., None], nx.array(w.eoi_embedding), found))

    return operation(embed=twin)


def tables(angles: Angles) -> Injection:
    """Other angles, of frequencies and positions."""

    def twin(_: Any, nx: Numerics, rope: Any, head_dim: int, positions: Array) -> Any:
        frequencies = inverse_frequencies(nx, rope, head_dim, positions)
        return cos_and_sin(nx, rope, angles(nx, positions.astype(frequencies.dtype)[..., None], frequencies))

    return operation(tables=twin)


def _in_two(nx: Numerics, rows: Array, root: Array) -> Array:
    half = bf16(nx, nx.xp.sqrt(root))
    return bf16(nx, rows * half) * half


SCALES: list[tuple[str, Scaled]] = [
    ("√hidden is in float16", lambda nx, rows, root: rows * fp16(nx, root)),
    ("√hidden has 10 bits", lambda nx, rows, root: rows * bits(nx, root, 10)),
    ("√hidden is one step too large", lambda nx, rows, root: rows * (bf16(nx, root) * (1 + 2.0**-7))),
    ("√hidden in two halves", _in_two),
]
ANGLES: list[tuple[str, Angles]] = [
    ("angles are in float16", lambda nx, positions, f: fp16(nx, positions * f)),
    ("frequencies are in float16", lambda nx, positions, f: positions * fp16(nx, f)),
    ("frequencies have 10 bits", lambda nx, positions, f: positions * bits(nx, f, 10)),
    ("positions have 4 bits", lambda nx, positions, f: bits(nx, positions, 4) * f),
    ("angles have 10 bits", lambda nx, positions, f: bits(nx, positions * f, 10)),
]
FAULTS = [
    fault
    for number, (title, scaled) in enumerate(SCALES, 1)
    for fault in near("D02", number, title, EMBEDDED, embedding(scaled))
]
FAULTS += [
    fault
    for number, (title, angles) in enumerate(ANGLES, 1)
    for fault in near("D27", number, title, TABLES, tables(angles))
]
