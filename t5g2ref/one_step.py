"""Decoding that a backend computes as a whole, layers and all: what it is asked, and where its values belong.

The definition is `decoder.decode`, layer by layer. A backend that has the twins below answers in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from t5g2ref.attention import Keys, dense_mask, split_heads
from t5g2ref.backend.whole import Chunk, Narrowing, Whole
from t5g2ref.cache import Cache, KeyValue
from t5g2ref.config import TextConfig
from t5g2ref.masks import decoder_band
from t5g2ref.numerics import Array, Numerics, twinned
from t5g2ref.trace import Trace
from t5g2ref.weights import Embedding, Stack

Rope = Mapping[str, tuple[Array, Array]]
"""cos and sin (B or 1, T, H) by layer kind."""


class Steps(Protocol):
    """Answers that go on without the host."""

    def next(
        self, ids: Array, running: Array, rope: Rope, ends: Sequence[int], pad: int, uniform: Array | None = None
    ) -> Chunk:
        """As many ids as `rope` (1, T, H) has positions, behind the last ids (B,): the likeliest, or where there is a
        sampling those drawn by uniform (T, B) float64. A row that ends with one of `ends`, or is not running (B,),
        goes on with pad; once all have ended the rest is missing."""


@twinned
def whole_step(
    nx: Numerics, w: Stack, config: TextConfig, x: Array, rope: Rope, cache: Cache, valid: Array
) -> Whole | None:
    """One new position x (B, 1, D) with valid bool (B, every position so far and the new one), or None: not here."""
    return None


@twinned
def whole_steps(
    nx: Numerics,
    w: Stack,
    table: Embedding,
    config: TextConfig,
    batch: int,
    scale: float,
    eoi_id: int,
    sampling: Narrowing | None = None,
) -> Callable[[Cache, int], Steps] | None:
    """(cache, own positions that there must be room for) → steps; None: not here. `scale` is the embedding's; without
    a sampling the likeliest ids are taken."""
    return None


def stepped(
    nx: Numerics, w: Stack, config: TextConfig, x: Array, rope: Rope, cache: Cache, seen: Array, trace: Trace
) -> tuple[Array, Cache] | None:
    """`decoder.decode` of one position by `whole_step`, with every tap in its place. None where there is none.

    Raises:
        ValueError: a trace that gives another value back; nothing here would go on with it.
    """
    whole = whole_step(nx, w, config, x, rope, cache, seen)
    if whole is None:
        return None
    kept = []
    for i, (kind, values) in enumerate(zip(config.layer_types, whole.layers, strict=True)):
        own = _layer(nx, config, kind, cache, i, values, seen, trace.at(f"layers.{i}"))
        _tap(trace, f"layers.{i}", values[""])
        window = config.window(kind)
        kept.append(own.last(None if window is None else window - 1))
    return _tap(trace, "norm", whole.hidden), cache.advanced(kept, seen)


def _layer(
    nx: Numerics,
    config: TextConfig,
    kind: str,
    cache: Cache,
    i: int,
    values: Mapping[str, Array],
    seen: Array,
    trace: Trace,
) -> KeyValue:
    """The taps of layer i in their order; its own keys and values with the new position behind them."""
    inner, mlp = trace.at("self_attn"), trace.at("mlp")
    _tap(trace, "pre_self_attn_layernorm", values["pre_self_attn_layernorm"])
    for name in ("q_proj", "k_proj", "v_proj"):
        _tap(inner, name, values[name])
    heads = {name: split_heads(values[name], config.head_dim) for name in ("q_norm", "q_rope", "k_norm", "k_rope")}
    for name, value in heads.items():
        _tap(inner, name, value)
    past, cross = cache.own[i], cache.cross[i]
    own = past.extended(nx, heads["k_rope"], split_heads(values["v_proj"], config.head_dim))
    _tap(inner, "keys", own.keys)
    _tap(inner, "values", own.values)
    _tap(inner, "cross_keys", cross.keys)
    _tap(inner, "cross_values", cross.values)
    groups = [Keys(own, seen[:, own.start :], decoder_band(config, kind)), Keys(cross, cache.cross_valid)]
    inner.lazy("mask", lambda: dense_mask(nx, groups, past.start + past.length, 1))
    for name in ("attention", "o_proj"):
        _tap(inner, name, values[name])
    for name in ("post_self_attn_layernorm", "attn_residual", "pre_feedforward_layernorm"):
        _tap(trace, name, values[name])
    for name in ("gate_proj", "up_proj", "act_fn", "product", "down_proj"):
        _tap(mlp, name, values[name])
    _tap(trace, "post_feedforward_layernorm", values["post_feedforward_layernorm"])
    return own


def _tap(trace: Trace, name: str, value: Array) -> Array:
    if trace(name, value) is not value:
        raise ValueError(f"tap {name}: a step that is computed as a whole takes no other value; use the backend's own")
    return value
