"""The second half of every text layer: x + post_norm(down(act(gate(y)) · up(y))) with y = pre_norm(x)."""

from __future__ import annotations

from t5g2ref.activation import gated
from t5g2ref.blocks import rowwise
from t5g2ref.config import TextConfig
from t5g2ref.numerics import Array, Numerics
from t5g2ref.ops import add_norm, rms_norm
from t5g2ref.trace import OFF, Trace
from t5g2ref.weights import Layer, Mlp

PART = 4096  # tokens of a row that go through together


def gated_mlp(nx: Numerics, w: Mlp, activation: str, x: Array, trace: Trace = OFF) -> Array:
    """x (B, T, D) → (B, T, D) through width F; no biases. `activation` is the configuration's `hidden_activation`."""
    gate = trace("gate_proj", nx.linear(x, w.gate_proj.weight))
    up = trace("up_proj", nx.linear(x, w.up_proj.weight))
    hidden = trace("product", gated(nx, activation, gate, up, trace))
    return trace("down_proj", nx.linear(hidden, w.down_proj.weight))


@rowwise("x")
def feed_forward(nx: Numerics, w: Layer, config: TextConfig, x: Array, trace: Trace) -> Array:
    """x (B, T, D) → (B, T, D): the second half of an encoder or decoder layer, with its residual.

    A long row goes through in parts, so that no array of its whole length has width F.
    """
    length = x.shape[1]
    if length <= PART or not trace.parts:
        return _feed_forward(nx, w, config, x, trace)
    parts = [_feed_forward(nx, w, config, x[:, t : t + PART], trace.part(t)) for t in range(0, length, PART)]
    return nx.join(parts, 1)


def _feed_forward(nx: Numerics, w: Layer, config: TextConfig, x: Array, trace: Trace) -> Array:
    eps = config.rms_norm_eps
    x = trace("attn_residual", x)
    y = trace("pre_feedforward_layernorm", rms_norm(nx, x, w.pre_feedforward_layernorm.weight, eps))
    y = gated_mlp(nx, w.mlp, config.hidden_activation, y, trace.at("mlp"))
    return add_norm(nx, x, y, w.post_feedforward_layernorm.weight, eps, "post_feedforward_layernorm", trace)
