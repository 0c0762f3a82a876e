"""Defects of rounding, as twins of operations: put into any Numerics, they round where no legal run does.

The float64 oracle rounds nothing else. So oracle with the defect − oracle is the defect's own pattern. In a
half-precision peer the same twins are the defect itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from conformance.arrays import has_kernels
from conformance.oracle import score_rows
from t5g2ref.activation import erf
from t5g2ref.blocks import elementwise
from t5g2ref.config import Rope
from t5g2ref.dtypes import HALF, to_grid
from t5g2ref.numerics import Array, Numerics
from t5g2ref.rope import cos_and_sin, inverse_frequencies

SHORT_FACTOR, GUESS_BITS, HIDDEN_SCORE = 0.0447, 6, -12.0

Half = Literal["bfloat16", "float16"]
Twin = Callable[..., Any]
Definition = Callable[..., Any]


def twins(defect: str, half: str) -> dict[str, Twin | None]:
    """Operation name → twin with the defect, for `Backend.with_twins`.

    Args:
        defect: one of ROUNDING.
        half: the type whose grid the defect rounds to, "bfloat16" or "float16".
    """
    if half not in HALF:
        raise ValueError(f"half is {half!r}: a defect of rounding needs one of {', '.join(HALF)}")
    return ROUNDING[defect](half)


def half_of(dtype: str) -> str:
    """The half type of a lane; bfloat16 of one that has none."""
    return dtype if dtype in HALF else "bfloat16"


def grid(nx: Numerics, x: Array, half: str) -> Array:
    """x rounded to the half type's grid, in its own dtype again. On a device by way of float32, which every library
    converts."""
    if nx.xp is not np:
        return x.astype(np.float32).astype(HALF[half]).astype(np.float32).astype(x.dtype)
    return to_grid(x, half).astype(x.dtype, copy=False)


def _unrounded_scale(_: str) -> dict[str, Twin | None]:
    """D02: √hidden in float64, where the model has it in the table's type."""

    def embed(_: Definition, nx: Numerics, w: Any, ids: Array, eoi_id: int) -> Array:
        rows = nx.wide(nx.array(w.weight[ids]))
        scaled = nx.cast(rows * math.sqrt(rows.shape[-1]))
        return nx.cast(nx.xp.where((ids == eoi_id)[..., None], nx.array(w.eoi_embedding), scaled))

    return {"embed": embed}


def _norms(norm: Callable[[Numerics, Array, Array, float], Array]) -> dict[str, Twin | None]:
    def twin(_: Definition, nx: Numerics, x: Array, weight: Array, eps: float) -> Array:
        return nx.cast(norm(nx, nx.wide(x), nx.wide(nx.weight(weight)), eps))

    return {"rms_norm": twin, "add_norm": None, "turned_norm": None}


def _inverse_rms(nx: Numerics, x: Array, eps: float) -> Array:
    return 1.0 / nx.xp.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def _narrow_factor(half: str) -> dict[str, Twin | None]:
    """D11: 1 + w has the half type's 8 or 11 bits."""
    return _norms(lambda nx, x, w, eps: x * _inverse_rms(nx, x, eps) * grid(nx, 1.0 + w, half))


def _cast_first(half: str) -> dict[str, Twin | None]:
    """D12: Llama's order."""
    return _norms(lambda nx, x, w, eps: grid(nx, x * _inverse_rms(nx, x, eps), half) * (1.0 + w))


def _narrow_variance(half: str) -> dict[str, Twin | None]:
    """D13: squares and their mean are rounded; the sum itself is wide, as libraries have it."""

    def norm(nx: Numerics, x: Array, w: Array, eps: float) -> Array:
        variance = grid(nx, grid(nx, x * x, half).mean(axis=-1, keepdims=True), half)
        return x / nx.xp.sqrt(variance + eps) * (1.0 + w)

    return _norms(norm)


def _narrow_angles(half: str) -> dict[str, Twin | None]:
    """D27: positions, frequencies and angles in the half type, as where the tables are made under that default."""

    def tables(_: Definition, nx: Numerics, rope: Rope, head_dim: int, positions: Array) -> Any:
        frequencies = grid(nx, inverse_frequencies(nx, rope, head_dim, positions), half)
        places = grid(nx, positions.astype(frequencies.dtype), half)
        return cos_and_sin(nx, rope, grid(nx, places[..., None] * frequencies, half))

    return {"tables": tables}


def _narrow_softmax(half: str) -> dict[str, Twin | None]:
    """D51: products, scores, exp, its sum and the quotient, each rounded."""

    def scores(nx: Numerics, q: Array, k: Array, scale: float, cap: float | None) -> Array:
        products = grid(nx, nx.product(q, k.swapaxes(-1, -2)), half)
        scaled = grid(nx, products * scale, half)
        return scaled if cap is None else grid(nx, cap * nx.xp.tanh(scaled / cap), half)

    def weights(
        _: Definition,
        nx: Numerics,
        q: Array,
        k: Array,
        scale: float,
        cap: float | None,
        allowed: Array | None,
        grouped: tuple[int, ...],
    ) -> Array:
        xp = nx.xp
        if nx.dtype == "float64" and has_kernels(xp):
            products = nx.product(q, k.swapaxes(-1, -2)).reshape(grouped)
            if (made := score_rows.narrow_softmax(xp, products, scale, cap, allowed, half)) is not None:
                return made
        values = scores(nx, q, k, scale, cap).reshape(grouped)
        values = values if allowed is None else xp.where(allowed, values, -xp.inf)
        top = values.max(axis=-1, keepdims=True)
        powers = grid(nx, xp.exp(grid(nx, values - xp.where(xp.isfinite(top), top, 0.0), half)), half)
        total = grid(nx, powers.sum(axis=-1, keepdims=True), half)
        return nx.cast(grid(nx, powers / xp.where(total == 0.0, 1.0, total), half))

    return {"attention_weights": weights}


def _gelus(gelu: Callable[[Numerics, Array], Array]) -> dict[str, Twin | None]:
    """An activation goes through its passes in pieces: of a picture's whole array each of the formula's arrays would
    take 135 MiB."""
    return {"gelu_tanh": lambda _, nx, x: gelu(nx, x), "gated_gelu": None}


def _erf_gelu(_: str) -> dict[str, Twin | None]:
    """D52: x · Φ(x) itself, which the tanh form approximates to 4.7e-4."""

    @elementwise
    def gelu(nx: Numerics, x: Array) -> Array:
        x = nx.wide(x).astype(np.float64)
        return nx.cast((0.5 * x * (1.0 + erf(nx.xp, x / math.sqrt(2.0)))).astype(nx.wide_dtype))

    return _gelus(gelu)


def _short_factor(_: str) -> dict[str, Twin | None]:
    """D83: the cubic's factor with four digits."""

    @elementwise
    def gelu(nx: Numerics, x: Array) -> Array:
        x = nx.wide(x)
        inner = math.sqrt(2.0 / math.pi) * (x + SHORT_FACTOR * (x * x * x))
        return nx.cast(0.5 * x * (1.0 + nx.xp.tanh(inner)))

    return _gelus(gelu)


def _newton_root(_: str) -> dict[str, Twin | None]:
    """D84: a guess of six bits, and one step of Newton's."""

    def norm(nx: Numerics, x: Array, w: Array, eps: float) -> Array:
        square = (x * x).mean(axis=-1, keepdims=True) + eps
        guess = _shortened(1.0 / nx.xp.sqrt(square), GUESS_BITS)
        return x * (guess * (1.5 - 0.5 * square * guess * guess)) * (1.0 + w)

    return _norms(norm)


def _shortened(x: Array, bits: int) -> Array:
    """x rounded to so many significant bits, by Veltkamp's splitting."""
    scaled = x * (2.0 ** (np.finfo(x.dtype).nmant + 1 - bits) + 1.0)
    return scaled - (scaled - x)


def _counted_masks(_: str) -> dict[str, Twin | None]:
    """D85: a hidden key's score is −12 before the softmax, where it should be nothing."""

    def weights(
        _: Definition,
        nx: Numerics,
        q: Array,
        k: Array,
        scale: float,
        cap: float | None,
        allowed: Array | None,
        grouped: tuple[int, ...],
    ) -> Array:
        xp, products = nx.xp, nx.wide(nx.product(q, k.swapaxes(-1, -2)))
        made = score_rows.counted_softmax(xp, products.reshape(grouped), scale, cap, allowed, HIDDEN_SCORE)
        if made is not None:
            return made
        values = products * scale
        values = (values if cap is None else cap * xp.tanh(values / cap)).reshape(grouped)
        values = values if allowed is None else xp.where(allowed, values, HIDDEN_SCORE)
        powers = xp.exp(values - values.max(axis=-1, keepdims=True))
        return nx.cast(powers / powers.sum(axis=-1, keepdims=True))

    return {"attention_weights": weights, "scaled_softmax": None}


ROUNDING: dict[str, Callable[[str], dict[str, Twin | None]]] = {
    "D02": _unrounded_scale,
    "D11": _narrow_factor,
    "D12": _cast_first,
    "D13": _narrow_variance,
    "D27": _narrow_angles,
    "D51": _narrow_softmax,
    "D52": _erf_gelu,
    "D83": _short_factor,
    "D84": _newton_root,
    "D85": _counted_masks,
}
"""Defect id → its twins for a half type."""
