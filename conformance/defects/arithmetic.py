"""Faults of arithmetic, as whole Numerics that no legal run has: wrong rounding, and sums that are too narrow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.defects.injection import Fault, Injection, in_single
from conformance.defects.rounding import grid
from t5g2ref.dtypes import HALF
from t5g2ref.numerics import Array, Numerics

E = "encoder.text_model"
NORM = "pre_self_attn_layernorm"
SHORT = np.uint32(0xFFFF0000)  # of a float32: what bfloat16 keeps


def _bits(x: Array) -> Array:
    return x.astype(np.float32).view(np.uint32)


@dataclass(frozen=True)
class Truncating(Numerics):
    """bfloat16 by leaving bits out."""

    def cast(self, x: Array) -> Array:
        return (_bits(x) & SHORT).view(np.float32).astype(self.storage)


@dataclass(frozen=True)
class Stochastic(Numerics):
    """bfloat16 by adding 16 bits that look like chance before the rest is left out."""

    def cast(self, x: Array) -> Array:
        bits = _bits(x)
        chance = np.arange(bits.size, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(bits.size)
        return (
            ((bits + self.xp.asarray(chance >> np.uint32(16)).reshape(bits.shape)) & SHORT)
            .view(np.float32)
            .astype(self.storage)
        )


@dataclass(frozen=True)
class NarrowSums(Numerics):
    """Every partial sum of a product is rounded to the half type."""

    def _sums(self, a: Array, b: Array, dtype: Any) -> Array:
        a, b = self.wide(a), self.wide(b)
        half = self.dtype if self.dtype in HALF else "bfloat16"
        total = a[..., :1] * b[..., :1, :]
        for k in range(1, a.shape[-1]):
            total = grid(self, total + a[..., k : k + 1] * b[..., k : k + 1, :], half)
        return total.astype(dtype)


@dataclass(frozen=True)
class TensorFloat(Numerics):
    """Factors of products have the 10 bits of TF32."""

    def _sums(self, a: Array, b: Array, dtype: Any) -> Array:
        a, b = (((_bits(x) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b))
        return self.xp.matmul(a, b).astype(dtype)


def numerics(kind: type[Numerics]) -> Injection:
    """This kind in place of the true one."""
    return Injection(
        lambda s: replace(s, nx=kind(s.nx.dtype, s.nx.profile, s.nx.backend, s.nx.embed_dtype)),
    )


FAULTS = [
    Fault(
        "X01",
        "numbers are truncated to bfloat16, not rounded",
        "short",
        f"{E}.embed_tokens",
        numerics(Truncating),
        status="half",
        lane="bfloat16",
    ),
    Fault(
        "X02",
        "numbers are rounded to bfloat16 at random",
        "short",
        f"{E}.embed_tokens",
        numerics(Stochastic),
        status="half",
        lane="bfloat16",
    ),
    Fault(
        "X03",
        "products are summed in bfloat16",
        "short",
        f"{E}.layers.0.self_attn.q_proj",
        numerics(NarrowSums),
        status="half",
        lane="bfloat16",
    ),
    Fault("X04", "products in TF32", "short", f"{E}.layers.0.self_attn.q_proj", numerics(TensorFloat)),
    in_single("D83", "the GELU's factor is 0.0447", "short", f"{E}.layers.0.mlp.act_fn"),
    in_single("D84", "the inverse root is a guess of six bits and one step", "short", f"{E}.layers.0.{NORM}"),
    in_single("D85", "hidden scores are -12", "window", f"{E}.layers.0.self_attn.attention"),
]
