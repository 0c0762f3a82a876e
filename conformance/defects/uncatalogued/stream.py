"""Faults of no catalogue: norms, residuals, activations, positions, single numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.defects.injection import Fault, Spot, configured, earlier, operation, patched, stacks, tapped
from conformance.defects.outputs import planted
from t5g2ref import inputs as door
from t5g2ref.config import Config
from t5g2ref.numerics import Array, Numerics
from t5g2ref.ops import rms_norm
from t5g2ref.rope import rotate
from t5g2ref.trace import Trace

E, D, TOWER, PROJECTOR = "encoder.text_model", "decoder", "encoder.vision_tower", "encoder.multi_modal_projector"
ROPE = "rotary_emb.full_attention.cos"


def _relu(_: Any, nx: Numerics, x: Array) -> Array:
    return nx.cast(nx.xp.maximum(nx.wide(x), 0))


def _quick_gelu(_: Any, nx: Numerics, x: Array) -> Array:
    x = nx.wide(x)
    return nx.cast(x / (1 + nx.xp.exp(-1.702 * x)))


def _zero_row(spot: Spot, x: Array) -> Array:
    return x * (spot.setting.nx.xp.arange(x.shape[1]) != 1)[None, :, None].astype(x.dtype)


def _twice_turned(
    _: Any, nx: Numerics, x: Array, weight: Array, eps: float, rope: Any, name: str, trace: Trace
) -> Array:
    turned = rotate(nx, trace(name, rms_norm(nx, x, weight, eps)), *rope)
    return rotate(nx, turned, *rope) if name == "k_norm" else turned


def _other_way(_: Any, nx: Numerics, x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    turned = nx.xp.concatenate([x[..., half:], -x[..., :half]], axis=-1)
    return nx.add(nx.mul(x, cos[:, None]), nx.mul(turned, sin[:, None]))


def _sine_first(definition: Any, nx: Numerics, *rest: Any) -> tuple[Array, Array]:
    cos, sin = definition(nx, *rest)
    return sin, cos


def _from_one(true: Any) -> Any:
    return lambda nx, name, value, shape, start, longest: true(nx, name, value, shape, start + 1, longest)


def _last_layer(c: Config, back: int = 0) -> str:
    return f"{D}.layers.{c.decoder.num_hidden_layers - 1 - back}"


FAULTS = [
    Fault("X20", "relu gates", "short", f"{E}.layers.0.mlp.act_fn", operation(gelu_tanh=_relu)),
    Fault(
        "X21",
        "quick GELU in the tower",
        "image",
        f"{TOWER}.encoder.layers.0.mlp.activation_fn",
        operation(gelu_tanh=_quick_gelu),
    ),
    Fault(
        "X22",
        "a layer's feed-forward has no residual",
        "short",
        f"{E}.layers.1",
        earlier(lambda _: f"{E}.layers.1", lambda _: f"{E}.layers.1.post_feedforward_layernorm"),
    ),
    Fault(
        "X23",
        "the decoder's last layer is skipped",
        "short",
        f"{D}.layers.6",
        earlier(_last_layer, lambda c: _last_layer(c, 1)),
    ),
    Fault(
        "X24", "the decoder's last norm is skipped", "short", f"{D}.norm", earlier(lambda _: f"{D}.norm", _last_layer)
    ),
    Fault(
        "X25",
        "RMSNorm's eps is 1e-6",
        "short",
        f"{E}.layers.0.pre_self_attn_layernorm",
        stacks(lambda t: replace(t, rms_norm_eps=1e-6)),
    ),
    Fault(
        "X26",
        "LayerNorm's eps is ten times too large",
        "image",
        f"{TOWER}.encoder.layers.0.layer_norm1",
        configured(lambda c: replace(c, vision=replace(c.vision, layer_norm_eps=10 * c.vision.layer_norm_eps))),
    ),
    Fault("X27", "RoPE turns the other way", "short", f"{E}.layers.0.self_attn.q_rope", operation(rotate=_other_way)),
    Fault(
        "X28", "keys are turned twice", "short", f"{E}.layers.0.self_attn.k_rope", operation(turned_norm=_twice_turned)
    ),
    Fault("X29", "cos and sin are exchanged", "short", f"{E}.{ROPE}", operation(tables=_sine_first)),
    Fault("X30", "positions start at 1", "short", f"{E}.{ROPE}", patched(door, "positions", _from_one)),
    Fault(
        "X31",
        "a token's row is zero",
        "short",
        f"{E}.layers.2.mlp.down_proj",
        tapped(f"{E}.layers.2.mlp.down_proj", _zero_row),
    ),
    Fault(
        "X32",
        "one number is infinite",
        "image",
        f"{PROJECTOR}.projected",
        tapped(f"{PROJECTOR}.projected", planted(11, float("inf"))),
        status="nan",
    ),
    Fault(
        "X33",
        "one number has the other sign",
        "short",
        f"{D}.layers.5.attn_residual",
        tapped(f"{D}.layers.5.attn_residual", lambda spot, x: x * (1 - 2 * planted(0, 1)(spot, x * 0))),
    ),
]
