"""Faults of no catalogue: single elements of a float32 run, within the ratio and above their worst-case bound."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conformance.defects.injection import Fault, Spot, tapped
from t5g2ref.numerics import Array

E, D = "encoder.text_model", "decoder"
BESIDE = 5  # a channel that is not the massive one; of the first token, which has it


def _one(change: Callable[[Array], Array], *index: int) -> Callable[[Spot, Array], Array]:
    """Another value of one element: of the first row, or the first head."""

    def changed(_: Spot, x: Array) -> Array:
        x = x.copy()
        x[(0, *index)] = change(x[(0, *index)])
        return x

    return changed


def _longer(by: float) -> Callable[[Array], Array]:
    """So much of itself larger; 2⁻²³ is one step of float32, or two."""
    return lambda x: x * np.float32(1 + by)


FAULTS = [
    Fault(
        "X80",
        "beside a massive channel one element of the residual is off by 1e-3 of itself",
        "short",
        f"{D}.layers.3",
        tapped(f"{D}.layers.3", _one(_longer(1e-3), 0, BESIDE)),
        status="ceiling",
        target="massive",
    ),
    Fault(
        "X81",
        "beside a massive channel one element of a norm is off by 1e-4 of itself",
        "short",
        f"{E}.layers.2.post_feedforward_layernorm",
        tapped(f"{E}.layers.2.post_feedforward_layernorm", _one(_longer(1e-4), 0, BESIDE)),
        status="ceiling",
        target="massive",
    ),
    Fault(
        "X82",
        "one cached value is off by a bit or two at its end",
        "cross-cached",
        f"{D}.layers.2.self_attn.values",
        tapped(f"{D}.layers.2.self_attn.values", _one(_longer(2.0**-23), 1, 1, 3)),
        status="ceiling",
    ),
    Fault(
        "X83",
        "one cross key is off by a bit or two at its end",
        "short",
        f"{D}.layers.1.self_attn.cross_keys",
        tapped(f"{D}.layers.1.self_attn.cross_keys", _one(_longer(2.0**-23), 1, 2, 3)),
        status="ceiling",
    ),
    Fault(
        "X84",
        "one element of a residual is off by four roundings",
        "short",
        f"{E}.layers.3.attn_residual",
        tapped(f"{E}.layers.3.attn_residual", _one(_longer(2.0**-22), 1, 7)),
        status="ceiling",
    ),
]
