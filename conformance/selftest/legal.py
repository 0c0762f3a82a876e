"""Legal runs, which have to conform: every profile, and orders of summation that no control has."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.defects.arithmetic import numerics
from conformance.defects.injection import HEALTHY, Injection, Setting
from t5g2ref.numerics import EAGER, RUNNING, SDPA, Array, Numerics, Profile


@dataclass(frozen=True)
class Reversed(Numerics):
    """Sums from the last term to the first."""

    def _sums(self, a: Array, b: Array, dtype: Any) -> Array:
        return self.xp.matmul(self.wide(a)[..., ::-1], self.wide(b)[..., ::-1, :]).astype(dtype)


@dataclass(frozen=True)
class Pieces(Numerics):
    """Sums in pieces of `terms` terms, added one after the other."""

    terms: int = 5

    def _sums(self, a: Array, b: Array, dtype: Any) -> Array:
        a, b, n = self.wide(a), self.wide(b), self.terms
        total = self.xp.matmul(a[..., :n], b[..., :n, :])
        for k in range(n, a.shape[-1], n):
            total = total + self.xp.matmul(a[..., k : k + n], b[..., k : k + n, :])
        return total.astype(dtype)


@dataclass(frozen=True)
class Sixteens(Pieces):
    """Pieces of sixteen terms."""

    terms: int = 16


@dataclass(frozen=True)
class Wide(Numerics):
    """Sums in float64, rounded once to float32."""

    def _sums(self, a: Array, b: Array, dtype: Any) -> Array:
        wide = self.xp.matmul(a.astype(np.float64), b.astype(np.float64))
        return wide.astype(self.wide_dtype).astype(dtype)


def _blocks(s: Setting) -> Setting:
    """Attention takes three queries at a time."""
    backend = copy.copy(s.nx.backend)
    backend.block_rows = 3
    return replace(s, nx=replace(s.nx, backend=backend))


ORDERS: dict[str, Injection] = {
    "blas": HEALTHY,
    "chunks of 16": numerics(Sixteens),
    "chunks of 5": numerics(Pieces),
    "backwards": numerics(Reversed),
    "float64": numerics(Wide),
    "rows of 3": Injection(_blocks),
}
"""Orders of summation, and of blocks, that anybody may choose."""

LEGAL: dict[str, tuple[Profile, Injection]] = {
    "sdpa": (SDPA, HEALTHY),
    "eager": (EAGER, HEALTHY),
    "running": (RUNNING, HEALTHY),
    "reversed": (SDPA, ORDERS["backwards"]),
    "pieces": (SDPA, ORDERS["chunks of 5"]),
    "blocks": (EAGER, ORDERS["rows of 3"]),
}
"""Name → (rounding points, order of summation): the legal runs of a self-test."""
