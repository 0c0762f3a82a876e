"""Faults of pictures: D04, D58 to D62, D77."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.cases.case import Run
from conformance.defects.injection import Fault, Injection, Setting, earlier, inputs, patched, tapped, weighed
from t5g2ref import model, vision
from t5g2ref.config import Config
from t5g2ref.numerics import Array, Numerics
from t5g2ref.ops import rms_norm
from t5g2ref.trace import Trace

E, TOWER, PROJECTOR = "encoder.text_model", "encoder.vision_tower", "encoder.multi_modal_projector"
PATCHES = f"{TOWER}.embeddings.patch_embedding"


def pixels(change: Any) -> Injection:
    """Other pictures than the case gives."""

    def changed(run: Run, _: Setting) -> Run:
        return run if run.pixel_values is None else replace(run, pixel_values=change(run.pixel_values))

    return inputs(changed)


def _sampled(pictures: Any) -> Any:
    """Every other row and column, twice: what is left of a picture that is shrunk by taking points."""
    side = pictures.shape[-1]
    return pictures[..., ::2, ::2].repeat(2, axis=-2).repeat(2, axis=-1)[..., :side, :side]


def _scaled_when_placed(true: Any) -> Any:
    def place(embedded: Array, ids: Array, features: Array, image_id: int) -> Array:
        scale = embedded.shape[-1] ** 0.5
        return true(embedded, ids, (features * scale).astype(embedded.dtype), image_id)

    return place


def reordered(order: Any) -> Injection:
    """Features of the pictures placed in another order, `order(features)`."""

    def wrap(true: Any) -> Any:
        return lambda embedded, ids, features, image_id: true(embedded, ids, order(features), image_id)

    return patched(model, "place_images", wrap)


def _transposed_grid(true: Any) -> Any:
    def project(nx: Numerics, w: Any, config: Config, encoded: Array, trace: Trace) -> Array:
        side = config.vision.patches_per_side
        grid = encoded.reshape(encoded.shape[0], side, side, -1).swapaxes(1, 2)
        return true(nx, w, config, grid.reshape(encoded.shape), trace)

    return project


def _norm_before_pooling(true: Any) -> Any:
    def project(nx: Numerics, w: Any, config: Config, encoded: Array, trace: Trace) -> Array:
        normed = rms_norm(nx, encoded, w.mm_soft_emb_norm.weight, config.vision.layer_norm_eps)
        names: dict[str, Any] = {}

        def sink(name: str, value: Any) -> Any:  # the norm behind the pooling hands on what it is given
            names[name] = trace(name, names["avg_pool"] if name == "mm_soft_emb_norm" else value)
            return names[name]

        return true(nx, w, config, normed, Trace(sink))

    return project


FAULTS = [
    Fault(
        "D04",
        "image features are scaled by √hidden when they are placed",
        "image",
        f"{E}.inputs_embeds",
        patched(model, "place_images", _scaled_when_placed),
        variant="placed",
    ),
    Fault(
        "D04",
        "image features are scaled by √hidden in the projector",
        "image",
        f"{PROJECTOR}.projected",
        tapped(f"{PROJECTOR}.projected", lambda spot, x: spot.setting.nx.cast(x * spot.setting.scale)),
        variant="projected",
    ),
    Fault("D58", "mean and deviation twice", "image", PATCHES, pixels(lambda p: (p - 0.5) / 0.5), variant="mean"),
    Fault("D58", "pictures are divided by 255 twice", "image", PATCHES, pixels(lambda p: p / 255), variant="rescale"),
    Fault("D77", "pictures are shrunk by taking points, not by averages", "image", PATCHES, pixels(_sampled)),
    Fault(
        "D59",
        "the patch grid is transposed before it is pooled",
        "image",
        f"{PROJECTOR}.avg_pool",
        patched(vision, "project", _transposed_grid),
        variant="grid",
    ),
    Fault(
        "D59",
        "the projection's memory is read as (text, vision)",
        "image",
        f"{PROJECTOR}.projected",
        weighed(f"{PROJECTOR}.mm_input_projection_weight", lambda w, _: w.reshape(w.shape[::-1]).T),
        variant="projection",
    ),
    Fault(
        "D60",
        "the projector's norm multiplies by w",
        "image",
        f"{PROJECTOR}.mm_soft_emb_norm",
        weighed(f"{PROJECTOR}.mm_soft_emb_norm.weight", lambda w, _: w - 1),
        variant="no + 1",
    ),
    Fault(
        "D60",
        "the projector norms before it pools",
        "image",
        f"{PROJECTOR}.avg_pool",
        patched(vision, "project", _norm_before_pooling),
        variant="order",
    ),
    Fault(
        "D61",
        "features of several pictures are placed last first",
        "images",
        f"{E}.inputs_embeds",
        reordered(lambda features: features[::-1]),
    ),
    Fault(
        "D62",
        "the tower's last norm is left out",
        "image",
        f"{TOWER}.post_layernorm",
        earlier(
            lambda _: f"{TOWER}.post_layernorm", lambda c: f"{TOWER}.encoder.layers.{c.vision.num_hidden_layers - 1}"
        ),
        variant="norm",
    ),
    Fault(
        "D62",
        "no position embedding",
        "image",
        f"{TOWER}.embeddings",
        weighed(f"{TOWER}.embeddings.position_embedding.weight", lambda w, _: w * 0),
        variant="position",
    ),
    Fault(
        "D62",
        "no biases in the tower's attention",
        "image",
        f"{TOWER}.encoder.layers.0.self_attn.q_proj",
        weighed(f"{TOWER}.encoder.layers.*.self_attn.*.bias", lambda w, _: w * 0),
        variant="bias",
    ),
]
