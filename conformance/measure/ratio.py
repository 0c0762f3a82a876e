"""Judges one tap of a peer by truth and control: present → shape → dtype → finite → values.

The ratio of a token is ‖peer − truth‖ / ‖control − truth‖. Truth is the float64 oracle; control is the same mathematics
in the peer's own precision. 1 means: as far from the truth as this precision has to be.

The denominator has two floors. It is never below u · ‖truth‖ (u: the unit roundoff), because no array of that type can
promise to be closer. It is never below the control's median relative error times ‖truth‖, because one token's error may
be small by luck. Others judge by such ratios too: FlashAttention's tests, PyTorch's `same`, AWS Neuron and Huawei CANN.
The local anchor of half types has a ratio and a floor of its own, in `half.py`.

A NaN fails: it is looked for first, and every test is written so that it fails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from conformance.measure import limits
from conformance.measure.distance import Distances
from conformance.measure.finding import Finding
from conformance.measure.words import in_words
from t5g2ref.dtypes import HALF, unit_roundoff
from t5g2ref.taps import Tap

WIDER = {"float32": ("float64",), **dict.fromkeys(HALF, ("float32", "float64"))}


def examine(
    tap: Tap,
    call: int,
    peer: Any,
    truth: Any,
    controls: list[Any],
    valid: np.ndarray[Any, Any] | None,
    *,
    dtype: str,
    limit: float,
    gate: Literal["worst", "median"] = "worst",
    distances: Distances | None = None,
) -> Finding:
    """Judge one tap.

    Args:
        peer: the peer's array, or None when it showed none.
        truth: the float64 oracle's array.
        controls: arrays of legal runs in the peer's precision; the largest of their errors is the yardstick.
        valid: NumPy bool over the tap's token axes, False on padding (`cases.plan.validity`); None for all.
        dtype: the peer's precision.
        limit: the largest ratio that passes.
        gate: which of the ratios has to pass. From the ids on (cumulative), a single token's error can hang on one
            chain of roundings and be large or small by luck, so there the median over tokens is judged; local
            ratios are sums over many roundings and every token is judged.
        distances: what the arrays of one backend are compared with; NumPy's when None. Only numbers by token leave it.
    """
    found = errors_of(tap, call, peer, truth, controls, valid, dtype, distances or Distances())
    return found if isinstance(found, Finding) else values(tap, call, found, dtype, limit, gate)


@dataclass(frozen=True)
class Errors:
    """One tap that can be judged: (3, valid tokens) as of `Distances.errors`, of `features` numbers a token; `keep` is
    bool over the token axes."""

    found: np.ndarray[Any, Any]
    features: int
    keep: np.ndarray[Any, Any]

    @cached_property
    def legal(self) -> np.ndarray[Any, Any]:
        """(tokens,): the control's error relative to the value."""
        norm, _, control = self.found
        return np.asarray(np.divide(control, norm, out=np.zeros_like(norm), where=norm > 0))


def errors_of(
    tap: Tap,
    call: int,
    peer: Any,
    truth: Any,
    controls: list[Any],
    valid: np.ndarray[Any, Any] | None,
    dtype: str,
    distances: Distances,
) -> Finding | Errors:
    """The errors of one tap, or the finding of what cannot be compared, is a mask, or is not finite."""
    found = refused(tap, call, peer, truth, valid, dtype)
    if found is not None:
        return found
    keep = kept(tap, truth, valid)
    if tap.exact:
        return exactly(tap, call, peer, truth, keep, distances)
    errors = distances.errors(tap.token_axes, truth, peer, controls)
    broken = not_finite(tap, call, peer, distances) if not np.isfinite(errors[1]).all() else None
    return broken or Errors(errors[:, keep.reshape(-1)], truth.size // keep.size, keep)


def typical(parts: Sequence[Errors]) -> float:
    """The relative error that is typical of a tap over all calls of a case: the median over tokens of the control's,
    or the largest where there are few tokens."""
    legal = np.sort(np.concatenate([part.legal for part in parts]))
    return float(legal[-1]) if len(legal) < limits.FEW_NUMBERS else middle(legal)


def refused(
    tap: Tap, call: int, peer: Any, truth: Any, valid: np.ndarray[Any, Any] | None, dtype: str
) -> Finding | None:
    """The finding of a value that cannot be compared: missing, of a wrong shape or dtype, or without a valid token."""

    def failed(status: str, detail: str) -> Finding:
        return Finding(tap.name, call, status, detail=detail)

    if peer is None:
        return failed("missing", f"expected {tap.shape or 'a scalar'} {truth.shape}, the peer shows nothing here")
    if tuple(peer.shape) != tuple(truth.shape):
        found = f"expected {tap.shape} = {tuple(truth.shape)}, found {tuple(peer.shape)}{_last_alone(tap, peer, truth)}"
        return failed("shape", found)
    if str(peer.dtype) not in (expected := _dtypes(tap, dtype)) and not wider(tap, peer, dtype):
        return failed("dtype", f"expected {' or '.join(expected)}, found {peer.dtype}")
    if not kept(tap, truth, valid).any() or not truth.size:
        return failed("missing", "no valid token to compare: an empty comparison is not a pass")
    return None


def _last_alone(tap: Tap, peer: Any, truth: Any) -> str:
    """What to do where logits have one position in place of each, as of a program that only generates."""
    one = tuple(peer.shape) == (truth.shape[0], 1, *truth.shape[2:])
    return ": one position; to show each, call it with each prefix" if tap.rows == "logits" and one else ""


def kept(tap: Tap, truth: Any, valid: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """bool over the tap's token axes: the tokens that are compared."""
    return np.ones([truth.shape[a] for a in tap.token_axes], bool) if valid is None else valid


def _dtypes(tap: Tap, dtype: str) -> tuple[str, ...]:
    """A mask is bool. A half-precision model may form its loss in float32 or in its own type: transformers does one
    for a language model and the other for a sequence classifier's cross-entropy (ForSequenceClassificationLoss)."""
    if tap.exact:
        return ("bool",)
    return ("float32", dtype) if tap.name == "loss" and dtype in HALF else (dtype,)


def wider(tap: Tap, peer: Any, dtype: str) -> bool:
    """Whether a value has more bits than the peer's declared type. It is judged, and said; fewer bits are a failure."""
    found = "" if peer is None or tap.exact else str(peer.dtype)
    return found not in _dtypes(tap, dtype) and found in WIDER.get(dtype, ())


def not_finite(tap: Tap, call: int, peer: Any, distances: Distances) -> Finding | None:
    """The finding of the peer's first NaN or infinity; None where it is the reference's error that is not finite."""
    value = distances.backend.host(peer)
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of a signalling NaN
        broken = np.argwhere(~np.isfinite(value))
    for index in broken[:1]:
        where = tuple(int(i) for i in index)
        return Finding(tap.name, call, "nan", detail=f"expected finite numbers, found {value[where]} at {where}")
    return None


def exactly(tap: Tap, call: int, peer: Any, truth: Any, keep: np.ndarray[Any, Any], distances: Distances) -> Finding:
    """The finding of a mask, which is compared bit for bit."""
    wrong = distances.differing(tap.token_axes, peer, truth)[keep.reshape(-1)]
    worst = int(wrong.argmax())
    token = tuple(int(i) for i in np.argwhere(keep)[worst])
    if not wrong.any():
        return Finding(tap.name, call, "pass", 0.0, 0.0, 0.0, token, 0.0, 0.0, len(wrong), judged=0.0, limit=0.0)
    shown, rule = (distances.backend.host(array[token]) for array in (peer, truth))
    extra = int((shown & ~rule).sum())
    detail = (
        f"query {token}: {int(wrong[worst])} keys differ from the rule ({extra} too many, {int(wrong[worst]) - extra} "
        f"too few); {int((wrong > 0).sum())} of {len(wrong)} queries are wrong"
    )
    return Finding(tap.name, call, "mask", token=token, tokens=len(wrong), detail=detail)


def values(
    tap: Tap, call: int, errors: Errors, dtype: str, limit: float, gate: str, usual: float | None = None
) -> Finding:
    """The finding of a tap that can be judged.

    Args:
        usual: the relative error that every token may have; None for what is typical of this tap in this call.
    """
    (norm, error, _), keep = errors.found, errors.keep
    yardstick = yardstick_of(errors, dtype, usual)
    ratio = _ratios(error, yardstick)
    worst, ordered = int(ratio.argmax()), np.sort(ratio)
    median = middle(ordered)
    scale = norm[worst] or 1.0
    judged = float(ratio[worst]) if gate == "worst" else median
    passed = judged <= limit  # a NaN compares false, and so fails
    detail = f"the {gate} token is {in_words(judged)} times the control's error away from the truth"
    if math.isnan(judged):
        detail = "the reference's own numbers are not finite here: nothing to judge by"
    return Finding(
        tap.name,
        call,
        "pass" if passed else "values",
        float(ratio[worst]),
        median,
        float(ordered[math.ceil(0.99 * len(ratio)) - 1]),  # not interpolated: a ratio may be infinite
        tuple(int(i) for i in np.argwhere(keep)[worst]) if keep.ndim else (),
        float(error[worst] / scale),
        float(yardstick[worst] / scale),
        len(ratio),
        "" if passed else detail,
        judged,
        limit,
    )


def ratios(errors: Errors, dtype: str, usual: float | None = None) -> np.ndarray[Any, Any]:
    """(valid tokens,): each error over what the token may have; `usual` as of `values`."""
    return _ratios(errors.found[1], yardstick_of(errors, dtype, usual))


def _ratios(error: np.ndarray[Any, Any], yardstick: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    ratio = np.divide(error, yardstick, out=np.where(error > 0, np.inf, 0.0), where=yardstick > 0)
    finite = np.isfinite(error) & np.isfinite(yardstick)
    return np.where(finite, ratio, np.nan)  # a broken reference excuses nobody


def yardstick_of(errors: Errors, dtype: str, usual: float | None = None) -> np.ndarray[Any, Any]:
    """(valid tokens,): what error each token may have: its own control's, but no less than what is typical of this tap
    (the median over tokens, of the error relative to the value) and than one rounding; `usual` as of `values`.

    Where a token has only a handful of numbers, its control's error can be near zero by luck, and so can the value:
    there the largest of the control's errors stands for all.
    """
    norm, _, control = errors.found
    if errors.features < limits.FEW_NUMBERS:
        return np.asarray(np.maximum(control.max(), unit_roundoff(dtype) * norm))
    if usual is None:
        usual = middle(np.sort(errors.legal))
    return np.asarray(np.maximum(control, max(usual, unit_roundoff(dtype)) * norm))


def middle(ordered: np.ndarray[Any, Any]) -> float:
    """The median of a sorted vector, as np.median has it to the bit; NaN where there is one, which comes last."""
    if np.isnan(ordered[-1]):
        return float("nan")
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
