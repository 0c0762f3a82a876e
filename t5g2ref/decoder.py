"""The decoder: causal layers whose self- and cross-attention are one merged softmax, over an explicit cache.

`start` projects the encoder's output once and returns an empty cache; `decode` consumes any number of new positions
and returns their hidden states with the advanced cache. One call with all positions, one call a position, and any
split between give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from t5g2ref.attention import Keys, merged_attention, project_cross
from t5g2ref.cache import Cache, KeyValue
from t5g2ref.config import TextConfig
from t5g2ref.masks import NONE_GIVEN, Band, Given, decoder_band
from t5g2ref.mlp import feed_forward
from t5g2ref.numerics import Array, Numerics, twinned
from t5g2ref.one_step import stepped
from t5g2ref.ops import add_norm, rms_norm
from t5g2ref.rope import rope_tables
from t5g2ref.trace import OFF, Trace
from t5g2ref.weights import Layer, Stack


@twinned
def start(
    nx: Numerics, w: Stack, config: TextConfig, encoded: Array, valid: Array | None = None, trace: Trace = OFF
) -> Cache:
    """The cache before the first position: encoded (B, S_enc, D), valid bool (B, S_enc) or None for no padding."""
    xp, batch = nx.xp, encoded.shape[0]
    cross = tuple(
        project_cross(nx, layer.self_attn, config, encoded, trace.at(f"layers.{i}.self_attn"))
        for i, layer in enumerate(w.layers)
    )
    none = xp.zeros((batch, config.num_key_value_heads, 0, config.head_dim), dtype=encoded.dtype)
    valid = xp.ones(encoded.shape[:2], dtype=bool) if valid is None else valid
    return Cache(
        own=tuple(KeyValue(none, none) for _ in cross),
        cross=cross,
        valid=xp.ones((batch, 0), dtype=bool),
        cross_valid=valid,
    )


@twinned
def decode(
    nx: Numerics,
    w: Stack,
    config: TextConfig,
    embedded: Array,
    positions: Array,
    cache: Cache,
    valid: Array | None = None,
    trace: Trace = OFF,
    given: Mapping[str, Given] = NONE_GIVEN,
    given_cross: Given | None = None,
) -> tuple[Array, Cache]:
    """New positions through the stack.

    Shapes: embedded (B, T, D), positions (B, T), valid bool (B, T) or None → hidden states (B, T, D) after the last
    norm, and the cache that the next call needs.

    Args:
        given: masks of the caller's over the own keys by layer kind, for all kinds or for none; a band and padding are
            not asked then.
        given_cross: the same over the encoder's keys, for all layers.
    """
    xp = nx.xp
    new = xp.ones(embedded.shape[:2], dtype=bool) if valid is None else valid
    seen = xp.concatenate([cache.valid, new], axis=1)
    x = trace("inputs_embeds", embedded)
    rope = rope_tables(nx, config, positions, trace)
    if x.shape[1] == 1 and not given and given_cross is None:
        whole = stepped(nx, w, config, x, rope, cache, seen, trace)
        if whole is not None:
            return whole
    kept = []
    for i, (layer, kind) in enumerate(zip(w.layers, config.layer_types, strict=True)):
        past, inner = cache.own[i], trace.at(f"layers.{i}")
        band, own_valid = (given[kind], None) if given else (decoder_band(config, kind), seen)
        cross = Keys(cache.cross[i], cache.cross_valid)  # no band: no window ever lies over the cross half
        cross = cross if given_cross is None else Keys(cache.cross[i], band=given_cross)
        x, own = _layer(nx, layer, config, x, rope[kind], past, band, own_valid, cross, inner)
        x = trace(f"layers.{i}", x)
        window = config.window(kind)
        kept.append(own.last(None if window is None else window - 1))
    hidden = trace("norm", rms_norm(nx, x, w.norm.weight, config.rms_norm_eps))
    return hidden, cache.advanced(kept, seen)


def _layer(
    nx: Numerics,
    w: Layer,
    config: TextConfig,
    x: Array,
    rope: tuple[Array, Array],
    past: KeyValue,
    band: Band,
    valid: Array | None,
    cross: Keys,
    trace: Trace,
) -> tuple[Array, KeyValue]:
    eps = config.rms_norm_eps
    y = trace("pre_self_attn_layernorm", rms_norm(nx, x, w.pre_self_attn_layernorm.weight, eps))
    y, own = merged_attention(nx, w.self_attn, config, y, rope, past, band, valid, cross, trace.at("self_attn"))
    x = add_norm(nx, x, y, w.post_self_attn_layernorm.weight, eps, "post_self_attn_layernorm", trace)
    return feed_forward(nx, w, config, x, trace), own
