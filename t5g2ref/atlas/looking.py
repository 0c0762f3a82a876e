"""Attention of the picture tower, kept in short while it runs: 4096 patches give 17 million weights a head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from t5g2ref.atlas import grids
from t5g2ref.atlas.seen import shrunk
from t5g2ref.attention import attention_weights, split_heads
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array

HEADS, HEAD = 8, 64  # heads that are drawn of a layer, and the cells of one's side


@dataclass(frozen=True)
class Looked:
    """The weights of one layer: of the first picture by query and key, of every picture by key.

    Args:
        mean: of the heads, at most (SIDE, SIDE): of each block of patches the largest.
        heads: of the first HEADS, at most (HEAD, HEAD) each.
        given: (I, P), what each patch gets of a query's weight, the mean of heads and queries; a row adds up to 1.
    """

    mean: Array
    heads: list[Array]
    given: Array


def looked(model: T5Gemma2, q: Array, k: Array, pictures: int) -> Looked:
    """The weights of a layer, of its queries and keys (I, P, D); of so many pictures at most."""
    given, mean, heads = [], np.zeros(0), list[Array]()
    for picture in range(min(pictures, q.shape[0])):
        total, drawn = 0.0, list[Array]()
        for weights in _by_head(model, q[picture], k[picture]):
            total, drawn = total + weights, [*drawn, shrunk(weights, HEAD, HEAD)][:HEADS]
        whole = np.asarray(total) / model.config.vision.num_attention_heads
        given.append(whole.mean(axis=0))
        mean, heads = (shrunk(whole, grids.SIDE, grids.SIDE), drawn) if picture == 0 else (mean, heads)
    return Looked(mean, heads, np.stack(given))


def _by_head(model: T5Gemma2, q: Array, k: Array) -> Iterator[Array]:
    """Each head's weights (P, P) of queries and keys (P, D), by the model's own function."""
    nx, width = model.nx, model.config.vision.head_dim
    queries, keys = split_heads(q[None], width), split_heads(k[None], width)  # (1, N, P, H)
    for head in range(queries.shape[1]):
        own = (queries[:, head : head + 1], keys[:, head : head + 1])
        shape = (1, 1, 1, queries.shape[2], keys.shape[2])
        yield np.asarray(attention_weights(nx, *own, width**-0.5, None, None, shape))[0, 0, 0]


def patch_names(side: int, most: int = grids.SIDE) -> list[str]:
    """The patches' rows and columns, row by row; of more than `most` the first of each block."""
    names = [f"{y},{x}" for y in range(side) for x in range(side)]
    kept = min(most, len(names))
    return [names[i * len(names) // kept] for i in range(kept)]
