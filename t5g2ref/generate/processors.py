"""What is done to a step's logits before an id is chosen: pure functions of arrays, each with one idea.

Logits are (B, V), float32 or float64, without NaN; −∞ forbids an id. `ids` (B, T) are the decoder's so far, its start
included and the encoder's not. Each function returns a new array of the logits' shape and type. `xp` is the arrays'
library. `rules.py` says in which order they are applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from t5g2ref.numerics import Array


def repetition_penalty(xp: Any, logits: Array, ids: Array, penalty: float) -> Array:
    """Logits of ids that occur are divided by the penalty where positive, and multiplied where negative.

    Source: Keskar et al., 2019, section 4.1, with the sign told apart as transformers does.
    """
    seen = _marked(xp, logits, ids)
    return xp.where(seen, xp.where(logits < 0, logits * penalty, logits / penalty), logits)


def no_repeat_ngram(xp: Any, logits: Array, ids: Array, size: int) -> Array:
    """An id that would complete a run of `size` ids for the second time is forbidden."""
    windows = ids.shape[1] - size + 1
    if windows < 1:
        return logits
    same = xp.ones((ids.shape[0], windows), dtype=bool)  # whether window w begins as the row ends
    for j in range(size - 1):
        same = same & (ids[:, j : j + windows] == ids[:, windows + j][:, None])
    nowhere = logits.shape[1]  # a column too many takes what completes nothing
    completed = xp.where(same, ids[:, size - 1 :], nowhere)
    return xp.where(_marked(xp, logits, completed, spare=1)[:, :nowhere], -xp.inf, logits)


def bad_words(xp: Any, logits: Array, ids: Array, words: Sequence[Sequence[int]]) -> Array:
    """The last id of a word is forbidden where the row ends in the others; of one id, everywhere."""
    banned = xp.zeros(logits.shape, dtype=bool)
    for *before, last in words:
        if len(before) > ids.shape[1]:
            continue
        ends = xp.ones(ids.shape[0], dtype=bool)
        for back, token in enumerate(reversed(before), start=1):
            ends = ends & (ids[:, -back] == token)
        banned[:, last] = banned[:, last] | ends
    return xp.where(banned, -xp.inf, logits)


def forbid(xp: Any, logits: Array, tokens: Sequence[int]) -> Array:
    """These ids are forbidden in every row, as ends are before the least length."""
    banned = xp.zeros(logits.shape, dtype=bool)
    for token in tokens:
        banned[:, token] = True
    return xp.where(banned, -xp.inf, logits)


def temperature(logits: Array, value: float) -> Array:
    """Logits over the temperature: below 1 the likely becomes likelier."""
    return logits / value


def top_k(xp: Any, logits: Array, count: int) -> Array:
    """The `count` largest logits stay, and whatever equals the last of them."""
    size = logits.shape[1]
    if count >= size:
        return logits
    least = xp.partition(logits, size - count, axis=1)[:, size - count]
    return xp.where(logits < least[:, None], -xp.inf, logits)


def top_p(xp: Any, logits: Array, mass: float) -> Array:
    """The fewest of the likeliest ids stay whose probabilities reach `mass`; at least one. Of equals the lower first.

    Source: Holtzman et al., 2020, section 3.1.
    """
    order = xp.argsort(-logits, axis=1, kind="stable")
    weights = _weights(xp, xp.take_along_axis(logits, order, axis=1))
    sums = xp.cumsum(weights, axis=1)
    before = sums - weights  # what the likelier ones have
    here = xp.zeros(logits.shape, dtype=bool)
    here[xp.arange(len(logits))[:, None], order] = (
        before < mass * sums[:, -1:]
    )  # true of the first, which has 0 before it
    return xp.where(here, logits, -xp.inf)


def min_p(xp: Any, logits: Array, share: float) -> Array:
    """Ids stay whose probability is at least this share of the likeliest one's."""
    relative = xp.exp(logits - logits.max(axis=1, keepdims=True))  # p / max p
    return xp.where(relative < share, -xp.inf, logits)


def log_softmax(xp: Any, logits: Array) -> Array:
    """(B, V) float64 log-probabilities in nats; each row needs a finite logit."""
    wide = logits.astype(np.float64, copy=False)
    shifted = wide - wide.max(axis=1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))


def drawn(xp: Any, logits: Array, uniform: Array) -> Array:
    """(B,) ids by inverse distribution function: the first whose cumulated probability is above uniform (B,) in [0, 1).

    In float64, so that every array library draws the same.
    """
    weights = _weights(xp, logits)
    below = xp.cumsum(weights, axis=1)
    above = below > uniform[:, None] * below[:, -1:]
    return (above & (weights > 0)).argmax(axis=1)  # an id of no weight is never drawn, however sums round


def chosen(xp: Any, values: Array, tokens: Array) -> Array:
    """(B,): of each row of values (B, V) the one at its id, tokens (B,)."""
    return values[xp.arange(len(values)), tokens]


def _weights(xp: Any, logits: Array) -> Array:
    """(B, V) float64 probabilities relative to the likeliest one's."""
    wide = logits.astype(np.float64, copy=False)
    return xp.exp(wide - wide.max(axis=1, keepdims=True))


def _marked(xp: Any, logits: Array, ids: Array, spare: int = 0) -> Array:
    """bool (B, V + spare): whether a row of ids (B, T) holds that id."""
    marks = xp.zeros((logits.shape[0], logits.shape[1] + spare), dtype=bool)
    marks[xp.arange(logits.shape[0])[:, None], ids] = True
    return marks
