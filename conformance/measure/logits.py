"""Logits judged by what they are for: a distribution, and its first choice.

Both start from the peer's own last hidden states, as the local anchor has them. KL(truth ‖ peer) is held beside
KL(truth ‖ control). The first choice has to be the truth's where the truth's margin is more than twice what a passing
peer's error can be. Elsewhere another first choice is a flip, which is counted and does not fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from conformance.measure import limits
from t5g2ref.backend import Backend

Array = Any
SINGLE = 2.0**-24  # unit roundoff of float32, in which servers give log-probabilities


class LogitTest:
    """Sums over every call of a case."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray[Any, Any]] = []

    def add(self, backend: Backend, peer: Array, truth: Array, controls: Sequence[Array], valid: Any) -> None:
        """Logits (B, T, V) of one call; valid bool (B, T) or None. Of the controls the worst counts, by token."""
        xp = backend.xp
        rows, keep = _tokens([truth, peer, *controls], valid)
        with np.errstate(all="ignore"):  # a peer's logits may be of any size: what is no number then fails
            logs = [log_softmax(xp, row) for row in rows]
            weight = xp.exp(logs[0])
            peer_kl, *kl = [(weight * (logs[0] - other)).sum(axis=1) for other in logs[1:]]
        budget = xp.stack([xp.abs(row - rows[0]).max(axis=1) for row in rows[2:]]).max(axis=0)
        order = xp.partition(rows[0], rows[0].shape[1] - 2, axis=1)[:, -2:]
        same = (rows[0].argmax(axis=1) == rows[1].argmax(axis=1)).astype(np.float64)
        found = xp.stack([peer_kl, xp.stack(kl).max(axis=0), budget, order[:, 1] - order[:, 0], same])
        self._rows.append(backend.host(found)[:, keep])

    def figures(self) -> dict[str, float]:
        """Empty where no logits were compared; else kl, the mean KL(truth ‖ peer) in nats; kl_ratio, beside the
        control's; tokens; certified, those whose margin is above twice the error that a logit may have
        (`LOGIT_ERRORS` of a control's largest); flips, other first choices; wrong, the flips of certified tokens."""
        if not self._rows:
            return {}
        peer, control, budget, margin, same = np.concatenate(self._rows, axis=1)
        certified = margin > 2 * limits.LOGIT_ERRORS * budget
        floor = np.finfo(np.float64).eps  # the divergence of two float64 runs is noise of this size
        return {
            "kl": float(peer.mean()),
            "kl_ratio": float((abs(peer.mean()) + floor) / (abs(control.mean()) + floor)),
            "tokens": float(peer.size),
            "certified": float(certified.sum()),
            "flips": float((same == 0).sum()),
            "wrong": float((certified & (same == 0)).sum()),
        }


class GivenTest:
    """Sums over every call of a case in which log-probabilities of some ids are given, and of the others nothing.

    What is left of the probability is taken as one id more. The divergence of these few is at most that of all.
    """

    def __init__(self) -> None:
        self._rows: list[np.ndarray[Any, Any]] = []

    def add(self, backend: Backend, peer: Array, truth: Array, controls: Sequence[Array], valid: Any) -> None:
        """Log-probabilities (B, T, k) of one call; valid bool (B, T) or None. Of the controls the worst counts."""
        xp = backend.xp
        rows, keep = _tokens([truth, peer, *controls], valid)
        with np.errstate(all="ignore"):  # a peer's numbers may be of any size: what is no number then fails
            logs = [_with_rest(xp, row) for row in rows]
            weight = xp.exp(logs[0])
            peer_kl, *kl = [(weight * (logs[0] - other)).sum(axis=1) for other in logs[1:]]
            peer_far, *far = [xp.abs(row - rows[0]).max(axis=1) for row in rows[1:]]
            peer_mean, *mean = [((row - rows[0]) ** 2).mean(axis=1) for row in rows[1:]]
            noise = SINGLE * (weight * xp.abs(logs[0])).sum(axis=1)
        worst = [xp.stack(of).max(axis=0) for of in (kl, far)]
        found = xp.stack([peer_kl, peer_far, peer_mean, noise, *worst, *mean])
        self._rows.append(backend.host(found)[:, keep])

    def figures(self) -> dict[str, float]:
        """Empty where nothing was compared; else kl, the mean of KL(truth ‖ peer) in nats; kl_ratio, beside the
        control's, both above the roundings of log-probabilities in float32; tokens; far and control_far, the largest
        |Δ log p| in nats; rms and control_rms, its root mean square, of the control for which that is largest."""
        if not self._rows:
            return {}
        peer, far, mean, noise, control, control_far, *control_mean = np.concatenate(self._rows, axis=1)
        floor = float(noise.mean()) + np.finfo(np.float64).eps
        return {
            "kl": float(peer.mean()),
            "kl_ratio": float((abs(peer.mean()) + floor) / (abs(control.mean()) + floor)),
            "tokens": float(peer.size),
            "far": float(far.max()),
            "control_far": float(control_far.max()),
            "rms": float(mean.mean() ** 0.5),
            "control_rms": float(max(of.mean() for of in control_mean) ** 0.5),
        }


def _with_rest(xp: Any, rows: Array) -> Array:
    """Log-probabilities (tokens, k) and, behind them, that of all other ids; it is no smaller than a rounding of 1."""
    rest = xp.maximum(-xp.expm1(xp.log(xp.exp(rows).sum(axis=1, keepdims=True))), SINGLE)
    return xp.concatenate([rows, xp.log(rest)], axis=1)


def _tokens(values: Sequence[Array], valid: Any) -> tuple[list[Array], Any]:
    """Each value (B, T, n) as rows (tokens, n), wide; and bool (tokens,), which of them count."""
    rows = [_wide(a).reshape(-1, a.shape[-1]) for a in values]
    return rows, np.ones(rows[0].shape[0], bool) if valid is None else np.asarray(valid).reshape(-1)


def _wide(a: Array) -> Array:
    return (a.astype(np.float32) if a.dtype.itemsize < 4 else a).astype(np.float64)


def log_softmax(xp: Any, rows: Array) -> Array:
    """Log-probabilities of rows (tokens, V), in their own type."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
