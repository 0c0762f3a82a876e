"""The beam search by its definition: at each step the likeliest of all continuations are kept. No cache, no order kept.

Every step computes all rows from their ids anew. So nothing that a real search has to carry along can be lost here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Step = Callable[[Array], Array]
"""ids (R, T) → logits (R, V) of the next id."""


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Args:
        ids: (B × beams, n + L), the best of a row first; scores (B × beams,): mean log-probability of the new ids.
        margin: (B,) in nats, the least gap by which a continuation was kept or left, or two results have their order.
        sources: (B × beams, L), the row that each new id's logits stood in when it was chosen.
    """

    ids: Array
    scores: Array
    margin: Array
    sources: Array


def searched(step: Step, start: Array, beams: int, new: int) -> Searched:
    """`new` ids behind the start (B, n), with so many beams, each returned. No id ends a row."""
    batch = len(start)
    ids, sums = np.repeat(start, beams, axis=0), np.full((batch, beams), -np.inf)
    sums[:, 0] = 0.0  # all beams of a row are one at first
    margin, sources = np.full(batch, np.inf), np.zeros((batch * beams, 0), np.int64)
    for _ in range(new):
        logs = _log_softmax(step(ids)).reshape(batch, beams, -1)
        total = (sums[:, :, None] + logs).reshape(batch, -1)
        order = np.argsort(-total, axis=1, kind="stable")[:, : beams + 1]
        best = np.take_along_axis(total, order, axis=1)
        margin = np.minimum(margin, _gap(best, beams))
        source, token = np.divmod(order[:, :beams], logs.shape[-1])
        rows = (source + beams * np.arange(batch)[:, None]).reshape(-1)
        ids, sums = np.concatenate([ids[rows], token.reshape(-1, 1)], axis=1), best[:, :beams]
        sources = np.concatenate([sources[rows], rows[:, None]], axis=1)
    if beams > 1:
        margin = np.minimum(margin, np.min([_gap(sums, n) for n in range(1, beams)], axis=0))
    return Searched(ids, (sums / new).reshape(-1), margin, sources)


def _gap(best: Array, kept: int) -> Array:
    """(B,): how much the last of the kept, and best, is better than the next; infinite where nothing is left."""
    if best.shape[1] <= kept:
        return np.full(len(best), np.inf)
    left = np.isfinite(best[:, kept])
    return np.where(left, best[:, kept - 1] - np.where(left, best[:, kept], 0.0), np.inf)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
