"""Faults of positions and RoPE: D19 to D24, D26 to D29."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.cases.case import Run
from conformance.defects.injection import (
    Fault,
    Injection,
    Setting,
    Spot,
    both_lanes,
    inputs,
    operation,
    patched,
    stacks,
    tapped,
)
from t5g2ref import decoder
from t5g2ref import inputs as door
from t5g2ref.cache import KeyValue
from t5g2ref.config import Rope, Ropes, TextConfig
from t5g2ref.numerics import Array, Numerics
from t5g2ref.rope import rotate, tables
from t5g2ref.trace import Trace

E, D = "encoder.text_model", "decoder"
FULL, SLIDING = "full_attention", "sliding_attention"
ROPE = "rotary_emb.full_attention.cos"  # the first of a stack's tables, by name


def _ropes(change: Callable[[Rope, Rope], tuple[Rope, Rope]]) -> Injection:
    """Other (sliding, full) tables in both stacks."""
    return stacks(
        lambda t: replace(t, rope_parameters=Ropes(*change(t.rope_parameters[SLIDING], t.rope_parameters[FULL])))
    )


def _rotated_cross_keys(true: Any) -> Any:
    """k_norm of cross keys, then RoPE of their layer's kind."""
    layer = [0]

    def project(nx: Numerics, w: Any, config: TextConfig, encoded: Array, trace: Trace) -> KeyValue:
        kv: KeyValue = true(nx, w, config, encoded, trace)
        kind = config.layer_types[layer[0] % config.num_hidden_layers]
        layer[0] += 1
        return replace(kv, keys=_turned(nx, config, kind, kv.keys))

    return project


def _turned(nx: Numerics, config: TextConfig, kind: str, keys: Array) -> Array:
    positions = nx.xp.broadcast_to(nx.xp.arange(keys.shape[2])[None], (keys.shape[0], keys.shape[2]))
    return rotate(nx, keys, *tables(nx, config.rope_parameters[kind], config.head_dim, positions))


def _rotated_at_norm(spot: Spot, keys: Array) -> Array:
    config = spot.setting.config.decoder
    return _turned(spot.setting.nx, config, config.layer_types[spot.layer], keys)


def _interleaved(_: Any, nx: Numerics, x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    even, odd, cos, sin = x[..., 0::2], x[..., 1::2], cos[:, None, :, :half], sin[:, None, :, :half]
    parts = [nx.add(nx.mul(even, cos), nx.mul(-odd, sin)), nx.add(nx.mul(odd, cos), nx.mul(even, sin))]
    return nx.xp.stack(parts, axis=-1).reshape(x.shape)


def decoder_positions(change: Callable[[Any, int], tuple[Any, int]]) -> Injection:
    """Other (given positions, first position) of a decoder call."""

    def wrap(true: Any) -> Any:
        def positions(nx: Numerics, name: str, value: Any, shape: Any, start: int, longest: int) -> Array:
            value, start = change(value, start) if name.startswith("decoder") else (value, start)
            return true(nx, name, value, shape, start, longest)

        return positions

    return patched(door, "positions", wrap)


def _from_mask(mask: Any) -> Any:
    return None if mask is None else np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def _encoder_from_mask(run: Run, _: Setting) -> Run:
    given = run.position_ids
    return replace(run, position_ids=_from_mask(run.attention_mask) if given is None else given)


def _decoder_from_mask(run: Run, _: Setting) -> Run:
    given = run.decoder_position_ids
    return replace(run, decoder_position_ids=_from_mask(run.decoder_attention_mask) if given is None else given)


FAULTS = [
    Fault(
        "D19",
        "sliding and full layers have each other's theta",
        "window",
        f"{E}.{ROPE}",
        _ropes(lambda s, f: (replace(s, theta=f.theta), replace(f, theta=s.theta))),
        variant="exchanged",
    ),
    Fault(
        "D19",
        "sliding and full layers have each other's tables, the factor too",
        "window",
        f"{E}.{ROPE}",
        _ropes(lambda s, f: (f, s)),
        variant="tables",
    ),
    Fault(
        "D19",
        "full layers have the sliding layers' theta",
        "window",
        f"{E}.{ROPE}",
        _ropes(lambda s, f: (s, replace(f, theta=s.theta))),
        variant="sliding",
    ),
    Fault(
        "D19",
        "sliding layers have the full layers' theta",
        "window",
        f"{E}.rotary_emb.sliding_attention.cos",
        _ropes(lambda s, f: (replace(s, theta=f.theta), f)),
        variant="full",
    ),
    Fault("D20", "no factor", "window", f"{E}.{ROPE}", _ropes(lambda s, f: (s, replace(f, factor=1.0)))),
    Fault(
        "D21",
        "the full layers' factor on sliding layers too",
        "window",
        f"{E}.rotary_emb.sliding_attention.cos",
        _ropes(lambda s, f: (replace(s, factor=f.factor), f)),
    ),
    Fault("D22", "the factor twice", "window", f"{E}.{ROPE}", _ropes(lambda s, f: (s, replace(f, factor=f.factor**2)))),
    Fault(
        "D23",
        "theta is 1e4 and 1e6 whatever the configuration says",
        "window",
        f"{E}.{ROPE}",
        _ropes(lambda s, f: (replace(s, theta=1e4), replace(f, theta=1e6))),
    ),
    Fault(
        "D24",
        "RoPE on cross keys, after their norm",
        "short",
        f"{D}.layers.0.self_attn.cross_keys",
        patched(decoder, "project_cross", _rotated_cross_keys),
        variant="after k_norm",
    ),
    Fault(
        "D24",
        "RoPE on cross keys, inside their norm",
        "short",
        f"{D}.layers.0.self_attn.cross_k_norm",
        tapped(f"{D}.layers.*.self_attn.cross_k_norm", _rotated_at_norm),
        variant="in k_norm",
    ),
    Fault(
        "D26",
        "RoPE turns neighbours, not halves",
        "short",
        f"{E}.layers.0.self_attn.q_rope",
        operation(rotate=_interleaved),
    ),
    *both_lanes("D27", "RoPE's angles are formed in bfloat16", "window", f"{E}.{ROPE}"),
    Fault(
        "D28",
        "positions start anew in every cached call",
        "cross-cached",
        f"{D}.{ROPE}",
        decoder_positions(lambda value, _: (value, 0)),
        call=1,
        variant="restarts",
    ),
    Fault(
        "D28",
        "positions are one too far behind the cache",
        "cross-cached",
        f"{D}.{ROPE}",
        decoder_positions(lambda value, start: (value, start + (start > 0))),
        call=1,
        variant="slips",
    ),
    Fault(
        "D28",
        "given positions are ignored behind the cache",
        "far-positions",
        f"{D}.{ROPE}",
        decoder_positions(lambda value, start: (None if start else value, start)),
        call=1,
        variant="given",
    ),
    Fault(
        "D29",
        "the encoder counts positions from its mask",
        "padded-left",
        f"{E}.{ROPE}",
        inputs(_encoder_from_mask),
        variant="encoder",
    ),
    Fault(
        "D29",
        "the decoder counts positions from its mask",
        "padded-left",
        f"{D}.{ROPE}",
        inputs(_decoder_from_mask),
        variant="decoder",
    ),
]
