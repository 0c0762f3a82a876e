"""Legal runs, which have to conform: every profile, and other orders of summation than the judge's controls have."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

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
    """Sums in pieces of five terms, added one after the other."""

    def _sums(self, a: Array, b: Array, dtype: Any) -> Array:
        a, b = self.wide(a), self.wide(b)
        total = self.xp.matmul(a[..., :5], b[..., :5, :])
        for k in range(5, a.shape[-1], 5):
            total = total + self.xp.matmul(a[..., k : k + 5], b[..., k : k + 5, :])
        return total.astype(dtype)


def _blocks(s: Setting) -> Setting:
    """Attention takes three queries at a time."""
    backend = copy.copy(s.nx.backend)
    backend.block_rows = 3
    return replace(s, nx=replace(s.nx, backend=backend))


LEGAL: dict[str, tuple[Profile, Injection]] = {
    "sdpa": (SDPA, HEALTHY),
    "eager": (EAGER, HEALTHY),
    "running": (RUNNING, HEALTHY),
    "reversed": (SDPA, numerics(Reversed)),
    "pieces": (SDPA, numerics(Pieces)),
    "blocks": (EAGER, Injection(_blocks)),
}
"""Name → rounding points, and what else is done otherwise."""
