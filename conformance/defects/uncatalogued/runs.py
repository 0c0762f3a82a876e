"""Faults that one run of a case does not show: they begin with the peer's second run."""

from __future__ import annotations

from typing import Any

from conformance.defects.injection import Fault, Spot, patched, tapped
from t5g2ref import inputs as door
from t5g2ref.numerics import Array, Numerics

E, D = "encoder.text_model", "decoder"


def _raced(_: Spot, value: Array) -> Array:
    """One value of many is not added up to the end."""
    value = value.copy()
    value[0, -1, 0] *= 0.9
    return value


def _counted_on(true: Any) -> Any:
    """Positions that go on from an input before."""

    def positions(nx: Numerics, *rest: Any) -> Any:
        return true(nx, *rest) + 2

    return positions


RACED = f"{E}.layers.2.mlp.down_proj"

FAULTS = [
    Fault("X98", "a race: one value wrong in one of two runs", "short", RACED, tapped(RACED, _raced), later=True),
    Fault(
        "D80",
        "positions go on from the input before",
        "short",
        f"{E}.rotary_emb.full_attention.cos",
        patched(door, "positions", _counted_on),
        later=True,
        named=False,
    ),
]
