"""One tap of a peer against truth and control: present → shape → dtype → finite → values.

The statistic is a ratio per token: ‖peer − truth‖ / ‖control − truth‖, where truth is the float64 oracle and control
is the same mathematics in the peer's own precision. 1 means: as far from the truth as this precision has to be. The
denominator is never below u · ‖truth‖ (u: the unit roundoff), because no array of that type can promise to be closer,
nor below the control's median relative error over the tokens times ‖truth‖, because one token's may be small by luck.
Ratios to a same-precision control are known practice: FlashAttention's tests, PyTorch's `same`, AWS Neuron and Huawei
CANN judge accelerators this way. A NaN fails: it is looked for first, and every test is written so that it fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from t5g2ref.numerics import HALF, unit_roundoff
from t5g2ref.taps import Tap

CHUNK = 1 << 16  # elements looked at together: they stay in the cache, while the tap may be a gigabyte
FEW = 16  # numbers of one token whose errors do not average out
FAULTS = ("missing", "shape", "dtype", "nan", "values", "mask")


@dataclass(frozen=True)
class Finding:
    """What was found at one tap of one call.

    Args:
        status: "pass", or the first of FAULTS that applies.
        worst, median, p99: of the per-token ratios over valid tokens; NaN when values were not reached.
        token: index of the worst token along the tap's token axes.
        peer_error: that token's ‖peer − truth‖ / ‖truth‖; control_error likewise, after the floor.
        tokens: how many valid tokens were compared.
        detail: for a fault: expected and found, in words.
        judged: the ratio that was held against the limit: the worst of a local anchor, the median of a cumulative one.
    """

    tap: str
    call: int
    status: str
    worst: float = float("nan")
    median: float = float("nan")
    p99: float = float("nan")
    token: tuple[int, ...] = ()
    peer_error: float = float("nan")
    control_error: float = float("nan")
    tokens: int = 0
    detail: str = ""
    judged: float = float("nan")

    @property
    def passed(self) -> bool:
        return self.status == "pass"


def examine(
    tap: Tap,
    call: int,
    peer: Any,
    truth: np.ndarray[Any, Any],
    controls: list[np.ndarray[Any, Any]],
    valid: np.ndarray[Any, Any] | None,
    *,
    dtype: str,
    limit: float,
    gate: Literal["worst", "median"] = "worst",
) -> Finding:
    """Judge one tap.

    Args:
        peer: the peer's array, or None when it showed none.
        truth: the float64 oracle's array.
        controls: arrays of legal runs in the peer's precision; the largest of their errors is the yardstick.
        valid: bool over the tap's token axes, False on padding; None for all.
        dtype: the peer's precision.
        limit: the largest ratio that passes.
        gate: which of the ratios has to pass. From the ids on (cumulative), a single token's error can hang on one
            chain of roundings and be large or small by luck, so there the median over tokens is judged; local
            ratios are sums over many roundings and every token is judged.
    """

    def fault(status: str, detail: str) -> Finding:
        return Finding(tap.name, call, status, detail=detail)

    if peer is None:
        return fault("missing", f"expected {tap.shape or 'a scalar'} {truth.shape}, the peer shows nothing here")
    if tuple(peer.shape) != tuple(truth.shape):
        return fault("shape", f"expected {tap.shape} = {tuple(truth.shape)}, found {tuple(peer.shape)}")
    if str(peer.dtype) != (expected := _dtype(tap, dtype)):
        return fault("dtype", f"expected {expected}, found {peer.dtype}")
    keep = np.ones([truth.shape[a] for a in tap.token_axes], bool) if valid is None else valid
    if not keep.any() or not truth.size:
        return fault("missing", "no valid token to compare: an empty comparison is not a pass")
    if tap.exact:
        return _exact(tap, call, _tokens(tap, peer, keep), _tokens(tap, truth, keep), keep)
    if not (np.isfinite(peer.min()) and np.isfinite(peer.max())):  # both carry a NaN on; no array is made
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(peer))[0])
        return fault("nan", f"expected finite numbers, found {peer[where]} at {where}")
    return _values(tap, call, peer, truth, controls, keep, dtype, limit, gate)


def _dtype(tap: Tap, dtype: str) -> str:
    """A mask is bool; a loss of a half-precision model is formed and given in float32."""
    if tap.exact:
        return "bool"
    return "float32" if tap.name == "loss" and dtype in HALF else dtype


def _tokens(tap: Tap, array: np.ndarray[Any, Any], keep: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(valid tokens, features), in the array's own dtype."""
    axes = tap.token_axes
    moved = np.moveaxis(array, axes, range(len(axes)))
    if keep.all():  # spares a copy, of what may be a gigabyte
        return moved.reshape(keep.size, -1)
    return np.asarray(moved[keep].reshape(int(keep.sum()), -1))


def _exact(
    tap: Tap, call: int, peer: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], keep: np.ndarray[Any, Any]
) -> Finding:
    wrong = (peer != truth).sum(axis=1)
    worst = int(wrong.argmax())
    token = tuple(int(i) for i in np.argwhere(keep)[worst])
    if not wrong.any():
        return Finding(tap.name, call, "pass", 0.0, 0.0, 0.0, token, 0.0, 0.0, len(wrong), judged=0.0)
    extra = int((peer[worst] & ~truth[worst]).sum())
    detail = (
        f"query {token}: {int(wrong[worst])} keys differ from the rule ({extra} too many, {int(wrong[worst]) - extra} "
        f"too few); {int((wrong > 0).sum())} of {len(wrong)} queries are wrong"
    )
    return Finding(tap.name, call, "mask", token=token, tokens=len(wrong), detail=detail)


def _values(
    tap: Tap,
    call: int,
    peer: np.ndarray[Any, Any],
    truth: np.ndarray[Any, Any],
    controls: list[np.ndarray[Any, Any]],
    keep: np.ndarray[Any, Any],
    dtype: str,
    limit: float,
    gate: str,
) -> Finding:
    arrays = [_tokens(tap, array, keep) for array in (truth, peer, *controls)]
    step = max(1, CHUNK // max(1, arrays[0].shape[1]))
    chunks = [_errors([a[t : t + step] for a in arrays]) for t in range(0, len(arrays[0]), step)]
    norm, error, control = np.concatenate(chunks, axis=1)
    yardstick = _yardstick(norm, control, arrays[0].shape[1], dtype)
    ratio = np.divide(error, yardstick, out=np.where(error > 0, np.inf, 0.0), where=yardstick > 0)
    ratio = np.where(np.isfinite(error) & np.isfinite(yardstick), ratio, np.nan)  # a broken reference excuses nobody
    worst = int(ratio.argmax())
    scale = norm[worst] or 1.0
    judged = ratio if gate == "worst" else np.median(ratio)
    passed = bool((judged <= limit).all())  # a NaN compares false, and so fails
    detail = f"the {gate} token is {np.max(judged):.3g} times the control's error away from the truth"
    if np.isnan(np.max(judged)):
        detail = "the reference's own numbers are not finite here: nothing to judge by"
    return Finding(
        tap.name,
        call,
        "pass" if passed else "values",
        float(ratio[worst]),
        float(np.median(ratio)),
        float(np.sort(ratio)[math.ceil(0.99 * len(ratio)) - 1]),  # not interpolated: a ratio may be infinite
        tuple(int(i) for i in np.argwhere(keep)[worst]) if keep.ndim else (),
        float(error[worst] / scale),
        float(yardstick[worst] / scale),
        len(ratio),
        "" if passed else detail,
        float(np.max(judged)),
    )


def _yardstick(
    norm: np.ndarray[Any, Any], control: np.ndarray[Any, Any], features: int, dtype: str
) -> np.ndarray[Any, Any]:
    """What error each token may have: its own control's, but no less than what is typical of this tap (the median
    over tokens, of the error relative to the value) and than one rounding.

    Where a token has only a handful of numbers, its control's error can be near zero by luck, and so can the value:
    there the largest of the control's errors stands for all.
    """
    if features < FEW:
        return np.asarray(np.maximum(control.max(), unit_roundoff(dtype) * norm))
    typical = np.median(np.divide(control, norm, out=np.zeros_like(norm), where=norm > 0))
    return np.asarray(np.maximum(control, max(float(typical), unit_roundoff(dtype)) * norm))


def _errors(rows: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """(3, tokens): ‖truth‖, ‖peer − truth‖ and the largest ‖control − truth‖."""
    truth, peer, *controls = rows
    return np.stack([_norms(truth), _norms(peer - truth), np.max([_norms(c - truth) for c in controls], axis=0)])


def _norms(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.sqrt(np.einsum("tf,tf->t", rows, rows, dtype=np.float64)))
