"""Faults of no catalogue: pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conformance.defects.injection import Fault, Injection, patched, weighed
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


def _pooled(pool: Callable[[Any, Array, int], Array]) -> Injection:
    """Another pooling: of a grid (I, side, side, D) to so many squares a side."""

    def wrap(true: Any) -> Any:
        def project(nx: Numerics, w: Any, config: Config, encoded: Array, trace: Trace) -> Array:
            side, patches = config.tokens_per_side, config.vision.patches_per_side
            grid = nx.wide(encoded).reshape(encoded.shape[0], patches, patches, -1)
            found = nx.cast(pool(nx.xp, grid, side)).reshape(encoded.shape[0], side * side, -1)
            return true(nx, w, config, encoded, Trace(lambda name, x: trace(name, found if name == "avg_pool" else x)))

        return project

    return patched(vision, "project", wrap)


def _squares(grid: Array, side: int) -> Array:
    """(I, side, side, D, kernel²)."""
    kernel = grid.shape[1] // side
    squares = grid.reshape(grid.shape[0], side, kernel, side, kernel, -1).transpose(0, 1, 3, 5, 2, 4)
    return squares.reshape(*squares.shape[:4], kernel * kernel)


def _largest(_: Any, grid: Array, side: int) -> Array:
    return _squares(grid, side).max(axis=-1)


def _midrange(_: Any, grid: Array, side: int) -> Array:
    squares = _squares(grid, side)
    return (squares.max(axis=-1) + squares.min(axis=-1)) / 2


def bilinear(_: Any, grid: Array, side: int) -> Array:
    """Without antialias: the mean of the four patches around the middle. Of a square of four that is the mean."""
    kernel = grid.shape[1] // side
    first, second = grid[:, kernel // 2 - 1 :: kernel], grid[:, kernel // 2 :: kernel]
    rows = (first + second) / 2
    return (rows[:, :, kernel // 2 - 1 :: kernel] + rows[:, :, kernel // 2 :: kernel]) / 2


def strided(_: Any, grid: Array, side: int) -> Array:
    """A kernel of two under a longer stride."""
    kernel = grid.shape[1] // side
    rows = (grid[:, ::kernel] + grid[:, 1::kernel]) / 2
    return (rows[:, :, ::kernel] + rows[:, :, 1::kernel]) / 2


def _too_wide(xp: Any, grid: Array, side: int) -> Array:
    """Adaptive squares that end one patch late, but for the last."""
    kernel = grid.shape[1] // side
    spans = [slice(i * kernel, (i + 1) * kernel + 1) for i in range(side)]
    return xp.stack([xp.stack([grid[:, a, b].mean(axis=(1, 2)) for b in spans], 1) for a in spans], 1)


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
        _pooled(_largest),
    ),
    Fault(
        "X55",
        "a picture's features are placed last first",
        "image",
        f"{E}.inputs_embeds",
        reordered(lambda features: features[:, ::-1]),
    ),
    *(
        Fault(number, f"patches are pooled by {title}", "image", f"{PROJECTOR}.avg_pool", _pooled(pool), target=target)
        for number, title, pool, target in (
            ("X56", "a bilinear resampling", bilinear, "tiny-even"),
            ("X57", "a kernel of two under a longer stride", strided, "tiny-even"),
            ("X58", "squares that end one patch late", _too_wide, "tiny-even"),
            ("X59", "half the sum of largest and smallest", _midrange, "tiny-even"),
        )
    ),
]
