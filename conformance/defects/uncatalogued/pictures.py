"""Faults of no catalogue: pictures."""

from __future__ import annotations

from typing import Any

from conformance.defects.injection import Fault, patched, weighed
from conformance.defects.uncatalogued.weights import rolled
from conformance.defects.vision import pixels, reordered
from t5g2ref import vision
from t5g2ref.attention import Keys
from t5g2ref.config import Config
from t5g2ref.numerics import Array, Numerics
from t5g2ref.trace import Trace

E, D, TOWER, PROJECTOR = "encoder.text_model", "decoder", "encoder.vision_tower", "encoder.multi_modal_projector"
ROPE = "rotary_emb.full_attention.cos"


def _columns_first(true: Any) -> Any:
    def patches(nx: Numerics, w: Any, config: Any, pixels: Array) -> Array:
        x, side = true(nx, w, config, pixels), config.patches_per_side
        return x.reshape(x.shape[0], side, side, -1).swapaxes(1, 2).reshape(x.shape)

    return patches


def _scaled_by_width(true: Any) -> Any:
    def attend(nx: Numerics, q: Array, sources: list[Keys], scale: float) -> Array:
        return true(nx, q, sources, scale=scale * q.shape[1] ** -0.5)

    return attend


def _largest(true: Any) -> Any:
    """The largest of each square of patches, not their mean."""

    def project(nx: Numerics, w: Any, config: Config, encoded: Array, trace: Trace) -> Array:
        side = config.tokens_per_side
        kernel = config.vision.patches_per_side // side
        squares = encoded.reshape(encoded.shape[0], side, kernel, side, kernel, -1)
        pooled = nx.wide(squares).max(axis=(2, 4)).reshape(encoded.shape[0], side * side, -1).astype(encoded.dtype)
        return true(nx, w, config, encoded, Trace(lambda name, x: trace(name, pooled if name == "avg_pool" else x)))

    return project


FAULTS = [
    Fault(
        "X50",
        "patches are counted down the columns",
        "image",
        f"{TOWER}.embeddings.patch_embedding",
        patched(vision, "patches", _columns_first),
    ),
    Fault(
        "X51",
        "blue, green, red",
        "image",
        f"{TOWER}.embeddings.patch_embedding",
        pixels(lambda p: p[:, ::-1]),
    ),
    Fault(
        "X52",
        "patch positions are one off",
        "image",
        f"{TOWER}.embeddings",
        weighed(f"{TOWER}.embeddings.position_embedding.weight", rolled),
    ),
    Fault(
        "X53",
        "the tower's scores are scaled by its whole width",
        "image",
        f"{TOWER}.encoder.layers.0.self_attn.attention",
        patched(vision, "attend", _scaled_by_width),
    ),
    Fault(
        "X54",
        "patches are pooled by their maximum",
        "image",
        f"{PROJECTOR}.avg_pool",
        patched(vision, "project", _largest),
    ),
    Fault(
        "X55",
        "a picture's features are placed last first",
        "image",
        f"{E}.inputs_embeds",
        reordered(lambda features: features[:, ::-1]),
    ),
]
