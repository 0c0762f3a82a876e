"""Numbers with fewer bits, rounded or cut off, and the faults made of them."""

from __future__ import annotations

from typing import Any

from conformance.defects.injection import Fault, Injection
from conformance.defects.rounding import grid
from t5g2ref.numerics import Array, Numerics

CASE = "window"  # enough tokens for a pattern to be told from another


def bf16(nx: Numerics, x: Array) -> Array:
    """x rounded to bfloat16."""
    return grid(nx, x, "bfloat16")


def fp16(nx: Numerics, x: Array) -> Array:
    """x rounded to float16."""
    return grid(nx, x, "float16")


def bits(nx: Numerics, x: Array, count: int) -> Array:
    """x rounded to so many significant bits; bfloat16 has 8."""
    fraction, exponent = nx.xp.frexp(x)
    return nx.xp.ldexp(nx.xp.rint(fraction * 2.0**count), exponent - count).astype(x.dtype)


def cut(nx: Numerics, x: Array) -> Array:
    """x with what is behind bfloat16's 8 bits cut off."""
    fraction, exponent = nx.xp.frexp(x)
    return nx.xp.ldexp(nx.xp.trunc(fraction * 2.0**8), exponent - 8).astype(x.dtype)


def near(defect: str, number: int, title: str, tap: str, inject: Injection, **more: Any) -> list[Fault]:
    """A fault beside a defect, in a bfloat16 and in a float32 peer."""
    key = f"N{defect[1:]}.{number}"
    return [Fault(key, title, CASE, tap, inject, lane=lane, near=defect, **more) for lane in ("bfloat16", "float32")]
