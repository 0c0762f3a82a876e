"""The text encoder: bidirectional layers with four norms each."""

from __future__ import annotations

from collections.abc import Mapping

from t5g2ref.attention import self_attention
from t5g2ref.config import TextConfig
from t5g2ref.masks import NONE_GIVEN, Band, Given, encoder_band
from t5g2ref.mlp import feed_forward
from t5g2ref.numerics import Array, Numerics, twinned
from t5g2ref.ops import add_norm, rms_norm
from t5g2ref.rope import rope_tables
from t5g2ref.trace import OFF, Trace
from t5g2ref.weights import Layer, TextEncoder


@twinned
def encode(
    nx: Numerics,
    w: TextEncoder,
    config: TextConfig,
    embedded: Array,
    positions: Array,
    valid: Array | None = None,
    trace: Trace = OFF,
    given: Mapping[str, Given] = NONE_GIVEN,
) -> Array:
    """embedded (B, S, D), positions (B, S), valid bool (B, S) or None → (B, S, D) after the last norm.

    Args:
        given: masks of the caller's by layer kind, for all kinds or for none; a band and `valid` are not asked then.
    """
    x = trace("inputs_embeds", embedded)
    rope = rope_tables(nx, config, positions, trace)
    for i, (layer, kind) in enumerate(zip(w.layers, config.layer_types, strict=True)):
        inner = trace.at(f"layers.{i}")
        band, seen = (given[kind], None) if given else (encoder_band(config, kind), valid)
        x = trace(f"layers.{i}", _layer(nx, layer, config, x, rope[kind], band, seen, inner))
    return trace("norm", rms_norm(nx, x, w.norm.weight, config.rms_norm_eps))


def _layer(
    nx: Numerics,
    w: Layer,
    config: TextConfig,
    x: Array,
    rope: tuple[Array, Array],
    band: Band,
    valid: Array | None,
    trace: Trace,
) -> Array:
    eps = config.rms_norm_eps
    y = trace("pre_self_attn_layernorm", rms_norm(nx, x, w.pre_self_attn_layernorm.weight, eps))
    y = self_attention(nx, w.self_attn, config, y, rope, band, valid, trace.at("self_attn"))
    x = add_norm(nx, x, y, w.post_self_attn_layernorm.weight, eps, "post_self_attn_layernorm", trace)
    return feed_forward(nx, w, config, x, trace)
