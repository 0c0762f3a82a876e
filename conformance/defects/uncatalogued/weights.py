"""Faults of no catalogue: tensors exchanged, shifted, rounded, left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from conformance.defects.injection import Fault, Injection, Setting, renamed, weighed
from conformance.defects.norms import exchanged
from t5g2ref.dtypes import to_grid
from t5g2ref.numerics import Array

E, D, TOWER, PROJECTOR = "encoder.text_model", "decoder", "encoder.vision_tower", "encoder.multi_modal_projector"
ROPE = "rotary_emb.full_attention.cos"


def _heads_exchanged(w: Array, s: Setting) -> Array:
    width = s.config.decoder.head_dim
    return s.nx.xp.concatenate([w[width : 2 * width], w[:width], w[2 * width :]])


def rolled(w: Array, s: Setting) -> Array:
    """The last row first."""
    return s.nx.xp.concatenate([w[-1:], w[:-1]])


def _eight_bits(w: Array, s: Setting) -> Array:
    """Rounded to 255 steps over its range, as by a quantised file."""
    host = s.nx.backend.host(w).astype(np.float32)
    step = np.abs(host).max() / 127
    return s.nx.xp.asarray(np.rint(host / step) * step).astype(w.dtype)


def _in_bfloat16(w: Array, s: Setting) -> Array:
    """Of a checkpoint in bfloat16 it is the same."""
    return s.nx.array(to_grid(w, "bfloat16"))


def _last_bit(w: Array, s: Setting) -> Array:
    rows, columns = (s.nx.xp.arange(n) == 5 for n in w.shape)
    return s.nx.xp.where(rows[:, None] & columns, s.nx.wide(w) * (1 + 2**-7), w).astype(w.dtype)


def _layers(one: int, other: int, both: bool) -> Injection:
    """Encoder layer `one` has the weights of `other`, and the other way round."""
    first, second = (f"{E}.layers.{i}." for i in (one, other))

    def source(name: str) -> str:
        if name.startswith(first):
            return name.replace(first, second)
        return name.replace(second, first) if both and name.startswith(second) else name

    return renamed(source)


def _shallow(s: Setting) -> Setting:
    """A decoder without its last layer."""
    stack = s.config.decoder
    last = stack.num_hidden_layers - 1
    config = replace(s.config, decoder=replace(stack, num_hidden_layers=last, layer_types=stack.layer_types[:-1]))
    weights = {n: w for n, w in s.weights.items() if not n.startswith(f"{D}.layers.{last}.")}
    return replace(s, config=config, weights=weights)


FAULTS = [
    Fault(
        "X10",
        "two query heads of one layer are exchanged",
        "short",
        f"{D}.layers.3.self_attn.q_proj",
        weighed(f"{D}.layers.3.self_attn.q_proj.weight", _heads_exchanged),
    ),
    Fault(
        "X11",
        "an encoder layer has another one's weights",
        "short",
        f"{E}.layers.2.pre_self_attn_layernorm",
        _layers(2, 1, False),
    ),
    Fault(
        "X12", "two encoder layers are exchanged", "short", f"{E}.layers.2.pre_self_attn_layernorm", _layers(2, 3, True)
    ),
    Fault(
        "X13",
        "the rows of one o_proj are one off",
        "short",
        f"{D}.layers.2.self_attn.o_proj",
        weighed(f"{D}.layers.2.self_attn.o_proj.weight", rolled),
    ),
    Fault(
        "X14",
        "one down_proj's memory is read as its transpose's",
        "short",
        f"{D}.layers.1.mlp.down_proj",
        weighed(f"{D}.layers.1.mlp.down_proj.weight", lambda w, _: w.reshape(w.shape[::-1]).T),
    ),
    Fault(
        "X15",
        "one weight is off in bfloat16's last bit",
        "short",
        f"{D}.layers.4.self_attn.o_proj",
        weighed(f"{D}.layers.4.self_attn.o_proj.weight", _last_bit),
    ),
    Fault(
        "X16",
        "one up_proj is rounded to eight bits",
        "short",
        f"{D}.layers.1.mlp.up_proj",
        weighed(f"{D}.layers.1.mlp.up_proj.weight", _eight_bits),
    ),
    Fault(
        "X17",
        "q_norm and k_norm have each other's weight",
        "short",
        f"{E}.layers.0.self_attn.q_norm",
        exchanged("q_norm", "k_norm"),
    ),
    Fault(
        "X18",
        "the decoder's last layer is not there",
        "short",
        f"{D}.layers.6.pre_self_attn_layernorm",
        Injection(_shallow, how="another configuration, and a layer's weights left out"),
        status="missing",
    ),
    Fault(
        "X19",
        "the classifier's bias is left out",
        "token",
        "score",
        weighed("score.out_proj.bias", lambda w, _: w * 0),
    ),
    Fault(
        "X70",
        "one up_proj is kept in bfloat16",
        "short",
        f"{D}.layers.2.mlp.up_proj",
        weighed(f"{D}.layers.2.mlp.up_proj.weight", _in_bfloat16),
        target="tiny-even",
    ),
    Fault(
        "X71",
        "the table is kept in bfloat16",
        "short",
        f"{E}.embed_tokens",
        weighed(f"{E}.embed_tokens.weight", _in_bfloat16),
        target="tiny-even",
    ),
    Fault(
        "X72",
        "one norm's weight is kept in bfloat16",
        "short",
        f"{D}.layers.5.self_attn.q_norm",
        weighed(f"{D}.layers.5.self_attn.q_norm.weight", _in_bfloat16),
        target="tiny-even",
    ),
    Fault(
        "X73",
        "the classifier's head is kept in bfloat16",
        "token",
        "score",
        weighed("score.out_proj.weight", _in_bfloat16),
        target="tiny-even",
    ),
]
