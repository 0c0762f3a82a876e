"""Holds every element of a tap against the worst-case bound of its error; one that is above it is proof."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from conformance.measure import limits
from conformance.measure.finding import Finding
from conformance.measure.words import in_words
from t5g2ref.backend import Backend
from t5g2ref.taps import Tap

Array = Any
Host = np.ndarray[Any, Any]


def above(
    finding: Finding,
    tap: Tap,
    peer: Array,
    truth: Array,
    bound: Array | None,
    keep: Host,
    smallest: float,
    backend: Backend,
) -> Finding:
    """The finding with its `ceiling`, the largest |error| / bound; failing by it where it passed and that is above 1.

    Args:
        bound: of every element's error, of the shape of truth and peer; None for a copy, of which no bit may change.
        keep: bool over the tap's token axes: the tokens that count.
        smallest: below it the type's grid is no longer relative: added to the bound.
    """
    xp, features = backend.xp, tuple(axis for axis in range(truth.ndim) if axis not in tap.token_axes)
    with np.errstate(over="ignore", invalid="ignore"):
        excess = xp.abs(peer - truth)
        excess = excess / (xp.abs(bound) + smallest) if bound is not None else xp.where(excess > 0, xp.inf, 0.0)
    largest = backend.host(excess.max(axis=features)).reshape(-1)[keep.reshape(-1)]
    worst = int(largest.argmax())  # a NaN comes first
    found = replace(finding, ceiling=float(largest[worst]))
    if not finding.passed or found.ceiling <= limits.CEILING:
        return found
    token = tuple(int(i) for i in np.argwhere(keep)[worst])
    what = f"an error {in_words(found.ceiling)} times the worst that legal rounding can do: proof"
    what = what if bound is not None else "it is a copy of what was shown before, of which no bit may change"
    detail = f"{_where(tap, token, excess, backend)}: {what}"
    return replace(found, status="ceiling", token=token, judged=found.ceiling, limit=limits.CEILING, detail=detail)


def _where(tap: Tap, token: tuple[int, ...], excess: Array, backend: Backend) -> str:
    """The token, and the element in it that is furthest above its bound."""
    row = np.moveaxis(backend.host(excess), tap.token_axes, range(len(tap.token_axes)))[token]
    element = np.unravel_index(int(row.argmax()), row.shape)
    return f"token {token}, element {tuple(int(i) for i in element)}"
