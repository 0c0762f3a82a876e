"""Errors that have accumulated from the ids on: what is typical of a tap, and how far each of its tokens may be off.

The cumulative anchor, black boxes and test vectors are judged by these functions alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from conformance.cases.plan import kind_of
from conformance.measure import limits
from conformance.measure.ratio import Errors, typical, yardstick_of
from t5g2ref.taps import Tap

Found = Sequence[tuple[Tap, int, Errors]]
"""Tap, call and errors of each tap of a case, in the order of the computation."""


def usual_errors(found: Found) -> list[float]:
    """For each tap, the relative error that all its tokens may have: what is typical of it over all calls.

    In a stack of few tokens the largest typical error along it counts: one chain's error can be small by luck.
    """
    parts, along = _by_name(found), defaultdict[str, float](float)
    usual = {name: typical(group) for name, group in parts.items()}
    for tap, _, _ in found:
        along[tap.module] = max(along[tap.module], usual[tap.name])

    def of(tap: Tap) -> float:
        few = sum(len(part.legal) for part in parts[tap.name]) < limits.FEW_NUMBERS
        return along[tap.module] if few and tap.module else usual[tap.name]

    return [of(tap) for tap, _, _ in found]


def unclear_kinds(found: Found) -> list[str]:
    """Kinds of tap where rounding could hide anything."""
    noisy = [name for name, group in _by_name(found).items() if _together(group) > limits.UNCLEAR_ERROR]
    return [*dict.fromkeys(map(kind_of, noisy))]


def allowed(errors: Errors, dtype: str, usual: float) -> np.ndarray[Any, Any]:
    """(valid tokens,): the distance from the truth that a token may have: the accumulated limit times its yardstick."""
    return limits.LIMITS["cumulative"] * yardstick_of(errors, dtype, usual)


def _by_name(found: Found) -> dict[str, list[Errors]]:
    parts: dict[str, list[Errors]] = {}
    for tap, _, errors in found:
        parts.setdefault(tap.name, []).append(errors)
    return parts


def _together(parts: Sequence[Errors]) -> float:
    """The control's error relative to the value, of all tokens together: a single number may be near zero by luck."""
    norm, _, control = np.concatenate([part.found for part in parts], axis=1)
    return float(np.linalg.norm(control) / (np.linalg.norm(norm) or 1.0))
