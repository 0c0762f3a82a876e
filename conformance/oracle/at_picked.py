"""Attention of picked tokens alone: queries at scattered positions over all keys, by the model's own definition.

The keys and values are the peer's, at every token. No S × S mask is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from conformance.cases.case import Run
from conformance.cases.picked import Picked
from t5g2ref.attention import Keys
from t5g2ref.model import Encoded, T5Gemma2
from t5g2ref.numerics import Array, Numerics

Positions = np.ndarray[Any, Any]
Definition = Callable[..., Any]


def at_picked(model: T5Gemma2, run: Run) -> T5Gemma2:
    """The model for a run with picked tokens: it makes masks of these alone, and if the run is cut, walks these alone;
    the model itself for any other run."""
    if run.picked is None:
        return model
    twins = {"dense_mask": partial(_mask, run.picked)} | ({"attend": partial(_attend, run.picked)} if run.cut else {})
    return model.with_numerics(replace(model.nx, backend=model.nx.backend.with_twins(twins)))


def _positions(picked: Picked, groups: Sequence[Keys]) -> Positions:
    """Of the queries: own keys and the encoder's are a decoder's."""
    return picked.answer if len(groups) > 1 else picked.source


def _whole(groups: Sequence[Keys]) -> list[Keys]:
    """Without a padding's mask that is of the picked tokens alone: such a run has no padding."""
    return [g if g.valid is None or g.valid.shape[1] == g.kv.length else replace(g, valid=None) for g in groups]


def with_all_valid(encoded: Encoded, run: Run, nx: Numerics) -> Encoded:
    """The encoder's output, whose tokens are the picked ones, with a padding's mask of the whole row."""
    return encoded if run.cut is None else replace(encoded, valid=nx.xp.ones((1, run.cut[0]), dtype=bool))


def _attend(
    picked: Picked, definition: Definition, nx: Numerics, q: Array, groups: Sequence[Keys], **how: Any
) -> Array:
    """Queries (B, N, n, H) of the picked tokens, neighbours together, so that a window's keys alone are read."""
    positions, keys = _positions(picked, groups), _whole(groups)
    parts = [
        definition(nx, q[:, :, first:last], keys, **how | {"first_query": int(positions[first])})
        for first, last in neighbours(positions)
    ]
    return parts[0] if len(parts) == 1 else nx.join(parts, 2)


def neighbours(positions: Positions) -> Iterator[tuple[int, int]]:
    """Half-open ranges of indices whose positions follow each other."""
    ends = [*(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
    return zip([0, *ends[:-1]], ends, strict=True)


def _mask(picked: Picked, _: Definition, nx: Numerics, groups: Sequence[Keys], *__: int) -> Array:
    """bool (1, n, S): what the rules let the picked queries see."""
    xp = nx.xp
    queries = xp.asarray(_positions(picked, groups))
    parts = []
    for group in _whole(groups):
        allowed = group.band.allows(queries, xp.arange(group.kv.start, group.kv.start + group.kv.length))[None]
        parts.append(allowed if group.valid is None else allowed & group.valid[:, None])
    return xp.concatenate(parts, axis=2)
