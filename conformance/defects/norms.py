"""Faults of norms and feed-forward: D09 to D18, D52, D53."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conformance.defects.injection import Fault, Injection, both_lanes, operation, patched, renamed
from t5g2ref import decoder, encoder
from t5g2ref.attention import split_heads
from t5g2ref.cache import KeyValue
from t5g2ref.config import TextConfig
from t5g2ref.numerics import Array, Numerics
from t5g2ref.ops import rms_norm
from t5g2ref.rope import rotate
from t5g2ref.trace import Trace

E, D = "encoder.text_model", "decoder"
NORM = "pre_self_attn_layernorm"


def _norm(factor: Callable[[Array], Array]) -> Injection:
    def norm(_: Any, nx: Numerics, x: Array, weight: Array, eps: float) -> Array:
        x = nx.wide(x)
        scale = 1.0 / nx.xp.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
        return nx.cast(x * scale * factor(nx.wide(nx.weight(weight))))

    return operation(rms_norm=norm)


def _without(missing: str) -> Injection:
    """q_norm or k_norm left out."""

    def turned(_: Any, nx: Numerics, x: Array, weight: Array, eps: float, rope: Any, name: str, trace: Trace) -> Array:
        normed = x if name == missing else rms_norm(nx, x, weight, eps)
        return rotate(nx, trace(name, normed), *rope)

    return operation(turned_norm=turned)


def _norm_after_rope(
    _: Any, nx: Numerics, x: Array, weight: Array, eps: float, rope: Any, name: str, trace: Trace
) -> Array:
    return trace(name, rms_norm(nx, rotate(nx, x, *rope), weight, eps))


def _norm_over_heads(
    _: Any, nx: Numerics, x: Array, weight: Array, eps: float, rope: Any, name: str, trace: Trace
) -> Array:
    batch, count, length, width = x.shape
    merged = x.swapaxes(1, 2).reshape(batch, length, count * width)
    normed = split_heads(rms_norm(nx, merged, nx.xp.concatenate([nx.weight(weight)] * count), eps), width)
    return rotate(nx, trace(name, normed), *rope)


def _post_missing(
    _: Any, nx: Numerics, residual: Array, x: Array, _weight: Array, _eps: float, name: str, trace: Trace
) -> Array:
    return nx.add(residual, trace(name, x))


def exchanged(one: str, other: str, stack: str = "") -> Injection:
    """Two weights of every layer under each other's names."""
    swap = {one: other, other: one}

    def source(name: str) -> str:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part in swap), None)
        if at is None or not name.startswith(stack):
            return name
        return ".".join([*parts[:at], swap[parts[at]], *parts[at + 1 :]])

    return renamed(source)


def _unnormed_cross_keys(_: Any) -> Any:
    def project(nx: Numerics, w: Any, config: TextConfig, encoded: Array, trace: Trace) -> KeyValue:
        k = split_heads(trace("cross_k_proj", nx.linear(encoded, w.k_proj.weight, w.k_proj.bias)), config.head_dim)
        v = split_heads(trace("cross_v_proj", nx.linear(encoded, w.v_proj.weight, w.v_proj.bias)), config.head_dim)
        return KeyValue(trace("cross_k_norm", k), v)

    return project


def before_the_last_norm(true: Any) -> Any:
    """A stack that shows its last norm and hands on what it was given."""

    def run(nx: Numerics, w: Any, config: TextConfig, *rest: Any) -> Any:
        at = next(i for i, one in enumerate(rest) if isinstance(one, Trace))
        seen: dict[str, Any] = {}

        def sink(name: str, value: Any) -> Any:
            seen[name] = rest[at](name, value)
            return seen[name]

        out = true(nx, w, config, *rest[:at], Trace(sink), *rest[at + 1 :])
        raw = seen[f"layers.{config.num_hidden_layers - 1}"]
        return (raw, *out[1:]) if isinstance(out, tuple) else raw

    return run


FAULTS = [
    Fault("D09", "RMSNorm multiplies by w", "short", f"{E}.layers.0.{NORM}", _norm(lambda w: w)),
    Fault("D10", "RMSNorm multiplies by 2 + w", "short", f"{E}.layers.0.{NORM}", _norm(lambda w: 2.0 + w)),
    *both_lanes("D11", "1 + w is rounded to bfloat16", "short", f"{E}.layers.0.{NORM}"),
    *both_lanes("D12", "RMSNorm rounds before it multiplies by 1 + w", "short", f"{E}.layers.0.{NORM}"),
    *both_lanes("D13", "squares and their mean are rounded to bfloat16", "short", f"{E}.layers.0.{NORM}", jumps=True),
    Fault(
        "D14",
        "the norms behind attention and feed-forward are left out",
        "short",
        f"{E}.layers.0.post_self_attn_layernorm",
        operation(add_norm=_post_missing),
        variant="missing",
    ),
    Fault(
        "D14",
        "the norms before and behind attention are exchanged",
        "short",
        f"{E}.layers.0.{NORM}",
        exchanged(NORM, "post_self_attn_layernorm"),
        variant="exchanged",
    ),
    Fault("D15", "no q_norm", "short", f"{E}.layers.0.self_attn.q_norm", _without("q_norm"), variant="q"),
    Fault("D15", "no k_norm", "short", f"{E}.layers.0.self_attn.k_norm", _without("k_norm"), variant="k"),
    Fault(
        "D16",
        "no k_norm on cross keys",
        "short",
        f"{D}.layers.0.self_attn.cross_k_norm",
        patched(decoder, "project_cross", _unnormed_cross_keys),
    ),
    Fault(
        "D17",
        "q and k are normed after RoPE",
        "short",
        f"{E}.layers.0.self_attn.q_norm",
        operation(turned_norm=_norm_after_rope),
        variant="after RoPE",
    ),
    Fault(
        "D17",
        "q and k are normed over all heads at once",
        "short",
        f"{E}.layers.0.self_attn.q_norm",
        operation(turned_norm=_norm_over_heads),
        variant="all heads",
    ),
    Fault(
        "D18",
        "the decoder reads the encoder's output before its last norm",
        "short",
        f"{D}.layers.0.self_attn.cross_k_proj",
        patched(encoder, "encode", before_the_last_norm),
    ),
    *both_lanes("D52", "erf GELU", "short", f"{E}.layers.0.mlp.act_fn"),
    Fault(
        "D53",
        "gate and up are exchanged",
        "short",
        f"{E}.layers.0.mlp.gate_proj",
        exchanged("gate_proj", "up_proj"),
    ),
]
