"""Token embedding: a scaled row of the shared table, one row that is special, and the images' features."""

from __future__ import annotations

import math

import numpy as np

from t5g2ref.dtypes import to_grid
from t5g2ref.numerics import Array, Numerics, twinned
from t5g2ref.weights import Embedding


def embed_scale(nx: Numerics, width: int) -> float:
    """√width rounded to the type of the running model's table (bfloat16: 25.25, 34.0, 50.5 for the releases)."""
    return float(to_grid(np.asarray(math.sqrt(width)), nx.embed_dtype or nx.dtype))


@twinned
def embed(nx: Numerics, w: Embedding, ids: Array, eoi_id: int) -> Array:
    """ids (B, T) → (B, T, D): row · √D, rounded once. The end-of-image id has a row of its own, which is not scaled."""
    rows = nx.array(w.weight[ids])
    scaled = nx.mul(rows, embed_scale(nx, rows.shape[-1]))
    return nx.cast(nx.xp.where((ids == eoi_id)[..., None], nx.array(w.eoi_embedding), scaled))


def told_ids(nx: Numerics, w: Embedding, given: Array, image_id: int) -> Array:
    """ids (B, T) as far as embeddings (B, T, D) tell them: `image_id` where a row is that id's own, −1 elsewhere.

    Rows are compared bit for bit in the type that they were given in: transformers finds a picture's place so.
    """
    row = embed(nx, w, nx.xp.full((1, 1), image_id), -1).astype(given.dtype)
    return nx.xp.where((nx.array(given) == nx.array(row)).all(axis=-1), image_id, -1)


def place_images(embedded: Array, ids: Array, features: Array, image_id: int) -> Array:
    """Put image features (I, M, D), unscaled, on the rows of embedded (B, S, D) whose id is `image_id`, in reading
    order over the batch. Raises ValueError unless there are exactly I · M such rows."""
    slots = ids == image_id
    count, rows = int(slots.sum()), features.shape[0] * features.shape[1]
    if count != rows:
        raise ValueError(
            f"the source holds {count} image tokens (id {image_id}) but pixel_values give {rows} feature rows "
            f"({features.shape[0]} images of {features.shape[1]}): put {features.shape[1]} image tokens per image"
        )
    placed = embedded.copy()
    placed[slots] = features.reshape(rows, -1)
    return placed
