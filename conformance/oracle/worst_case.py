"""The worst case: how far a legal run in float32 or a half type can be from the truth at a tap, element by element.

`Ceiling` is a Numerics under which the model's own source computes, in place of a value, the bound of its error. The
walk gives every operation the peer's own values, so that one operation lies between two taps and its bound is the
textbook one (Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, chapters 2 and 3): one rounding of the
result to the peer's type, plus what sums and functions in float32 may lose before. Attention also may round its scores
twice, as an unfused one does, and a product may be rounded before its bias is added. An error above the bound is no
matter of statistics: nobody who rounds where this model rounds can have it.

In float32 every rounding is one of SINGLE. A sum of n terms, in whatever order and blocks, is off by at most n of them
times the sum of the terms' sizes. So the bound of one element knows nothing of its neighbours, however large they are.

A product that is itself reduced in the half type (split-K on some GPUs) is not legal here: it is worse than this bound,
and is shown as what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.arrays import has_kernels
from conformance.oracle import score_rows
from conformance.oracle.angles import roundoffs
from t5g2ref import activation, ops, rope
from t5g2ref.backend import Backend
from t5g2ref.blocks import elementwise
from t5g2ref.dtypes import DType, unit_roundoff
from t5g2ref.numerics import EXACT, Array, Numerics
from t5g2ref.rope_types import attention_factor

SINGLE = 2.0**-24  # unit roundoff of the float32 inside
LOOSE = 4  # float32 functions (tanh, cos, rsqrt) are not correctly rounded: a few ulps
EXP = 20  # ulps of the exponential in flash kernels on vector units (PyTorch's `exp_u20`)
SMALLEST = {"bfloat16": 2.0**-126, "float16": 2.0**-24, "float32": 2.0**-110}
"""Below it a type rounds to a fixed grid, or flushes; in float32 each of 65536 products may be flushed."""


@dataclass(frozen=True)
class Ceiling(Numerics):
    """Numerics of error bounds; make it by `ceiling`.

    Args:
        half: the peer's type: a half one, or float32.
    """

    half: DType = "bfloat16"

    @property
    def u(self) -> float:
        """Unit roundoff of the peer's type, with the second order: (1 + u)(1 + 2⁻²⁰) − 1."""
        return unit_roundoff(self.half) * (1 + 2.0**-10)

    @property
    def single(self) -> bool:
        """Whether the peer is in float32, and there is nothing wider inside."""
        return self.half == "float32"

    def cast(self, x: Array) -> Array:
        """One rounding of x; the last bits of float32 relative to the row's largest element for what came before."""
        size = self.xp.abs(x)
        return self.u * size + 2 * LOOSE * SINGLE * size.max(axis=-1, keepdims=True)

    def add(self, a: Array, b: Array) -> Array:
        """One rounding of the sum, which in float32 is all there is."""
        return self.u * self.xp.abs(a + b) if self.single else super().add(a, b)

    def mul(self, a: Array, b: Array) -> Array:
        return self.u * self.xp.abs(a * b) if self.single else super().mul(a, b)

    def matmul(self, a: Array, b: Array) -> Array:
        """Attention's weights, which are bounds already, times values."""
        return self.xp.matmul(self.xp.abs(a), self.xp.abs(b))

    def columns(self, rows: Array, weight: Array, bias: Array | None) -> Array:
        """On a CPU in float32, which takes half the time and holds what a peer shows and its weights have. What its own
        sums may lose of y and of the terms' sizes is in the bound; where they overflow it is formed in float64."""
        if self.in_cache:
            loss = (rows.shape[-1] + LOOSE) * SINGLE
            with np.errstate(over="ignore", invalid="ignore"):
                bound = self._bound(rows, weight, bias, np.dtype(np.float32), (1 + 2 * loss) * (1 + 3 * self.u))
            if np.isfinite(bound).all():
                return bound.astype(np.float64) * (1 + 2 * LOOSE * SINGLE)
        return self._bound(rows, weight, bias, np.dtype(np.float64), 1.0)

    def _bound(self, rows: Array, weight: Array, bias: Array | None, kind: np.dtype[Any], slack: float) -> Array:
        """`columns`, formed in this type; with so many times what sums in float32 may lose."""
        abs_, rows, w = self.xp.abs, rows.astype(kind, copy=False), weight.astype(kind, copy=False).T
        y, size = self.backend.product(rows, w, kind), self.backend.product(abs_(rows), abs_(w), kind)
        first = 0.0
        if bias is not None:
            first = self.u * (1 + self.u) * abs_(y)  # a GPU library may round the product before it adds the bias
            y += bias.astype(kind, copy=False)
            size += abs_(bias.astype(kind, copy=False))
        size *= (rows.shape[-1] + LOOSE) * SINGLE * slack  # in place: of a picture each is 135 MiB in float64
        return first + self.u * abs_(y) + size


def ceiling(backend: Backend, dtype: DType) -> Ceiling:
    """The bounds of a peer in this type, on this backend."""
    return Ceiling("float64", EXACT, backend.with_twins(TWINS), dtype, dtype)


Definition = Callable[..., Array]


def _relative(nx: Ceiling, y: Array, terms: int) -> Array:
    """One rounding of y, whose relative error before is that of so many float32 operations."""
    return (nx.u + (terms + LOOSE) * SINGLE) * nx.xp.abs(y)


def _rms_norm(definition: Definition, nx: Ceiling, x: Array, weight: Array, eps: float) -> Array:
    return _relative(nx, definition(_true(nx), x, weight, eps), x.shape[-1])


def _layer_norm(definition: Definition, nx: Ceiling, x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """The mean is subtracted: what float32 loses there is relative to x, not to the difference. A running variance is
    off by κ, the root mean square over the spread (Chan and Lewis, 1979)."""
    true, xp = _true(nx), nx.xp
    y = definition(true, x, weight, bias, eps)
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = xp.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    kappa = xp.sqrt((x**2).mean(axis=-1, keepdims=True)) / spread
    sizes = xp.abs(x).max(axis=-1, keepdims=True) + kappa * xp.abs(centred)
    size = sizes / spread * xp.abs(true.weight(weight)) + xp.abs(true.weight(bias))
    return nx.u * xp.abs(y) + 2 * (x.shape[-1] + LOOSE) * SINGLE * size


def _gelu_tanh(definition: Definition, nx: Ceiling, x: Array) -> Array:
    """1 + tanh cancels where x is negative: the loss is relative to x."""

    @elementwise
    def bound(_: Numerics, x: Array) -> Array:
        return nx.u * nx.xp.abs(definition(_true(nx), x)) + 4 * LOOSE * SINGLE * nx.xp.abs(x)

    return bound(nx, x)


def _silu(definition: Definition, nx: Ceiling, x: Array) -> Array:
    """An exponential, a sum and a quotient, relative to the result; far below 0 exp(−x) may overflow to a 0."""
    return _relative(nx, definition(_true(nx), x), 2 * LOOSE) + nx.xp.abs(x) * SMALLEST[nx.half]


def _relu(definition: Definition, nx: Ceiling, x: Array) -> Array:
    """A copy or 0: no bit may change in float32. In a half type the bound is that of one rounding."""
    return x * 0.0 if nx.single else _relative(nx, definition(_true(nx), x), 0)


def _softcap(definition: Definition, nx: Ceiling, x: Array, cap: float | None) -> Array:
    """Three roundings: of x / cap, which tanh does not enlarge, of tanh, and of the product."""
    if cap is None:  # nothing is done: a copy in float32; in a half type the ratio judges what was handed on
        return x * 0.0 if nx.single else x
    small = cap * SMALLEST[nx.half]  # the quotient and tanh may be in the type's fixed grid
    return nx.u * nx.xp.abs(x) + 2 * _relative(nx, definition(_true(nx), x, cap), LOOSE) + small


def _rotate(definition: Definition, nx: Ceiling, x: Array, cos: Array, sin: Array) -> Array:
    """Two products and a sum, each rounded."""
    half, xp = x.shape[-1] // 2, nx.xp
    turned = xp.concatenate([x[..., half:], x[..., :half]], axis=-1)
    parts = xp.abs(x * cos[:, None]) + xp.abs(turned * sin[:, None])
    return nx.u * (1 + nx.u) * parts + _relative(nx, definition(_true(nx), x, cos, sin), 2)


def _tables(definition: Definition, nx: Ceiling, kind: Any, head_dim: int, positions: Array) -> tuple[Array, Array]:
    """Frequency, its power and the angle are float32: an angle of a radians is off by a few ulps of a."""
    off = roundoffs(nx, kind, head_dim, positions, LOOSE)
    loss = SINGLE * attention_factor(kind) * (2 * LOOSE + nx.xp.concatenate([off, off], axis=-1))
    cos, sin = definition(_true(nx), kind, head_dim, positions)
    return nx.u * nx.xp.abs(cos) + loss, nx.u * nx.xp.abs(sin) + loss


def _embed(definition: Definition, nx: Ceiling, w: Any, ids: Array, eoi_id: int) -> Array:
    return _relative(nx, definition(_true(nx), w, ids, eoi_id), 0)


def _weights(
    definition: Definition, nx: Ceiling, q: Array, k: Array, scale: float, cap: float | None, allowed: Any, grouped: Any
) -> Array:
    """Of the weights p: a score off by at most d moves every p by at most exp(2 d) − 1 of itself; then p is rounded,
    and so is the sum of p · v, whose terms these bounds are to be multiplied by.

    Inside, the scale and the largest score so far cost roundings of scores. Exponentials above and below the line are
    off by EXP ulps each. Three sums over the keys count: the total, p · v, and the rescaling of a flash kernel's.
    """
    xp, true, kt = nx.xp, _true(nx), k.swapaxes(-1, -2)
    by_score, by_size = (2 if cap is None else 5) * nx.u, (q.shape[-1] + 3 * LOOSE) * SINGLE
    of_sums = (3 * k.shape[2] + 4 * EXP + LOOSE) * SINGLE
    if has_kernels(xp):
        products, sizes = (s.reshape(grouped) for s in (xp.matmul(q, kt), xp.matmul(xp.abs(q), xp.abs(kt))))
        off = (by_score, by_size, 2 * nx.u + of_sums, SMALLEST[nx.half])
        if (made := score_rows.weights_bound(xp, products, sizes, scale, cap, allowed, off)) is not None:
            return made
    weights = definition(true, q, k, scale, cap, allowed, grouped)
    scores, sizes = (xp.abs(s).reshape(grouped) * scale for s in (xp.matmul(q, kt), xp.matmul(xp.abs(q), xp.abs(kt))))
    lost = by_score * scores + by_size * sizes
    lost = lost if allowed is None else xp.where(allowed, lost, 0.0)
    lost = xp.expm1(xp.minimum(2 * lost.max(axis=-1, keepdims=True), 700.0))
    relative = lost + 2 * nx.u * (1 + lost) + of_sums * (1 + lost)
    return weights * relative + (weights > 0) * SMALLEST[nx.half]


def _average(definition: Definition, nx: Ceiling, squares: Array) -> Array:
    """A mean of a square's patches, in any order."""
    true = _true(nx)
    y, size = definition(true, squares), definition(true, nx.xp.abs(squares))
    terms = squares.shape[2] * squares.shape[4]
    return nx.u * nx.xp.abs(y) + (terms + LOOSE) * SINGLE * size


def _true(nx: Ceiling) -> Numerics:
    """The truth's numerics, on the backend with its own twins."""
    return Numerics("float64", EXACT, nx.backend.with_twins(dict.fromkeys(TWINS)), nx.half)


TWINS: Mapping[str, Callable[..., Any]] = {
    ops.rms_norm.__name__: _rms_norm,
    ops.layer_norm.__name__: _layer_norm,
    ops.gelu_tanh.__name__: _gelu_tanh,
    activation.gelu_erf.__name__: _gelu_tanh,  # 1 + erf cancels in the same way
    activation.silu.__name__: _silu,
    activation.relu.__name__: _relu,
    ops.softcap.__name__: _softcap,
    rope.rotate.__name__: _rotate,
    rope.tables.__name__: _tables,
    "average": _average,
    "embed": _embed,
    "attention_weights": _weights,
}
