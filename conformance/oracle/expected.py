"""What a port should find in a case, and how far from it each token may be: the truth and its controls, condensed.

Everything starts from the ids. A token may be as far from the truth as the accumulated limit lets a black box be
(`measure/accumulated.py`): so a port that shows its values needs no run of ours beside it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.cases.case import Case
from conformance.cases.least import LOGITS
from conformance.cases.plan import kind_of, plan_of, required, validity
from conformance.errors import UsageError
from conformance.measure.accumulated import allowed, unclear_kinds, usual_errors
from conformance.measure.distance import Distances
from conformance.measure.ratio import Errors, errors_of
from conformance.oracle.run_case import models, program
from conformance.oracle.side_by_side import walk
from conformance.target import Target
from t5g2ref.dtypes import DType
from t5g2ref.taps import Tap

MOST_TOKENS = 16
"""Of one tap in one call. Of more, so many are kept, evenly spread: else long cases would be most of the files."""

MOST_LOGITS = 8
"""The same of logits, which are the largest by far. What is wrong at one token alone shows in the residual before them;
what is wrong behind it, in the last norm or the head, is wrong at every token."""

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Expected:
    """One tap of one call.

    Args:
        values: (n, features) float32, the truth at the n tokens that are compared.
        allowed: (n,) float32, the largest ‖value − truth‖ that each of them may have.
        compared: uint8 over the tap's token axes: 1 for a token that is compared, in the order of `values`; 0 for
            padding, and for what was left out to save room.
    """

    tap: Tap
    call: int
    values: Host
    allowed: Host
    compared: Host


def expected_of(target: Target, case: Case, dtype: DType) -> tuple[list[Expected], list[str]]:
    """Every tap that a dump has to show, in order, and the kinds of tap that were left out as unclear.

    Those are left out because rounding to `dtype` could hide anything there. The target lies on the host.
    UsageError where the weights themselves are beyond `dtype`.
    """
    with _quiet():  # what a half type cannot hold is left out below
        met = _walked(target, case, dtype)
        found = [(tap, call, errors) for tap, call, _, errors in met]
        most = [allowed(errors, dtype, usual) for (_, _, errors), usual in zip(found, usual_errors(found), strict=True)]
        endless = [
            kind_of(tap.name) for (tap, _, _), one in zip(found, most, strict=True) if not np.isfinite(one).all()
        ]
        unclear = list(dict.fromkeys([*unclear_kinds(found), *endless]))
    expected = [
        _condensed(tap, call, stored, errors, one)
        for (tap, call, stored, errors), one in zip(met, most, strict=True)
        if kind_of(tap.name) not in unclear
    ]
    return expected, unclear


def _walked(target: Target, case: Case, dtype: DType) -> list[tuple[Tap, int, Host, Errors]]:
    """Tap, call, the truth as it is stored, and the controls' errors; the stored value stands in the peer's place."""
    case = case.given(dtype)
    taps = {(call, tap.name): tap for call, tap in plan_of(target.config, case) if required(tap)}
    met: list[tuple[Tap, int, Host, Errors]] = []

    def meet(call: int, name: str, values: list[Any]) -> list[Any]:
        tap, (truth, *controls) = taps[call, name], values
        stored = truth.astype(np.float32)
        valid = validity(case, call, tap, truth.shape)
        errors = errors_of(tap, call, stored, truth, controls, valid, "float32", Distances())
        if not isinstance(errors, Errors):
            raise UsageError(
                f"{case.name} in {dtype}: {name} has no truth: {errors.detail}; give --dtype of a wider type"
            )
        met.append((tap, call, stored, errors))
        return values

    ours = models(target.config, target.rounded(dtype), case, dtype)
    walk(ours, program(case), meet, where=lambda call, name: (call, name) in taps, scope=_quiet)
    return met


def _quiet() -> AbstractContextManager[object]:
    return np.errstate(all="ignore")


def _condensed(tap: Tap, call: int, stored: Host, errors: Errors, most: Host) -> Expected:
    """The values of the chosen tokens. What is stored is not the truth to the last bit, and a checker measures from
    it: so each distance is widened by that much. Whoever the judge passes is not accused."""
    keep = errors.keep
    chosen = _spread(len(most), MOST_LOGITS if tap.name == LOGITS else MOST_TOKENS)
    compared = np.zeros(keep.shape, np.uint8)
    compared.reshape(-1)[np.flatnonzero(keep)[chosen]] = 1
    values = np.moveaxis(stored, tap.token_axes, range(keep.ndim)).reshape(keep.size, -1)[compared.reshape(-1) == 1]
    return Expected(tap, call, values, _upward(most + errors.found[1])[chosen], compared)


def _spread(count: int, most: int) -> Host:
    """Indices of the tokens that are kept: all, or as many as there may be, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _upward(distances: Host) -> Host:
    """As float32, and never below."""
    single = distances.astype(np.float32)
    return np.where(single < distances, np.nextafter(single, np.float32(np.inf)), single)
