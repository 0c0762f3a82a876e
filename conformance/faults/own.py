"""Faults that are not in the catalogue: a judge that only knows the list is no judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.faults.attention import attended
from conformance.faults.fault import (
    Fault,
    Injection,
    Setting,
    Spot,
    configured,
    decoding,
    earlier,
    operation,
    patched,
    renamed,
    stacks,
    tapped,
    weighed,
)
from conformance.faults.heads import planted
from conformance.faults.masks import sources
from conformance.faults.norms import before_the_last_norm, exchanged
from conformance.faults.vision import pixels, reordered
from t5g2ref import attention, cache, decoder, heads, vision
from t5g2ref import inputs as door
from t5g2ref.attention import Source
from t5g2ref.cache import Cache, KeyValue
from t5g2ref.config import Config
from t5g2ref.masks import Band
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array, Numerics
from t5g2ref.ops import rms_norm
from t5g2ref.rope import rotate
from t5g2ref.trace import Trace

E, D, TOWER, PROJECTOR = "encoder.text_model", "decoder", "encoder.vision_tower", "encoder.multi_modal_projector"
ROPE = "rotary_emb.full_attention.cos"


# Weights


def _heads_exchanged(w: Array, s: Setting) -> Array:
    width = s.config.decoder.head_dim
    return s.nx.xp.concatenate([w[width : 2 * width], w[:width], w[2 * width :]])


def _rolled(w: Array, s: Setting) -> Array:
    """The last row first."""
    return s.nx.xp.concatenate([w[-1:], w[:-1]])


def _eight_bits(w: Array, s: Setting) -> Array:
    """Rounded to 255 steps over its range, as by a quantised file."""
    host = s.nx.backend.host(w).astype(np.float32)
    step = np.abs(host).max() / 127
    return s.nx.xp.asarray(np.rint(host / step) * step).astype(w.dtype)


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


WEIGHTS = [
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
        weighed(f"{D}.layers.2.self_attn.o_proj.weight", _rolled),
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
]


# The stream: norms, residuals, activations, single numbers


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
    return lambda nx, name, value, shape, start: true(nx, name, value, shape, start + 1)


def _last_layer(c: Config, back: int = 0) -> str:
    return f"{D}.layers.{c.decoder.num_hidden_layers - 1 - back}"


STREAM = [
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


# Attention and cache


def _values_reversed(true: Any, nx: Numerics, q: Array, sources: list[Source], start: int, **how: Any) -> Array:
    if len(sources) == 1:
        kv = sources[0].kv
        sources = [replace(sources[0], kv=replace(kv, values=kv.values[:, :, ::-1]))]
    return true(nx, q, sources, start=start, **how)


def _dropout(definition: Any, nx: Numerics, *rest: Any) -> Array:
    weights = definition(nx, *rest)
    kept = nx.xp.asarray(np.arange(weights.size) % 7 != 3).reshape(weights.shape)
    return weights * kept.astype(weights.dtype)


def _advanced(change: Callable[[list[KeyValue], Cache], list[KeyValue]]) -> Injection:
    """Another past than the call leaves behind."""

    def wrap(true: Any) -> Any:
        return lambda before, own, valid: true(before, change(list(own), before), valid)

    return patched(cache.Cache, "advanced", wrap)


def _rows_mixed(own: list[KeyValue], _: Cache) -> list[KeyValue]:
    return [replace(kv, keys=kv.keys[::-1], values=kv.values[::-1]) for kv in own]


def _one_stays(own: list[KeyValue], before: Cache) -> list[KeyValue]:
    """Layer 2 forgets what this call added."""
    new, old = own[2], before.own[2]
    return [*own[:2], replace(old, start=new.start + new.length - old.length), *own[3:]]


def _values_one_off(nx: Numerics, _: Any, own: Source, cross: Source) -> tuple[Source, Source]:
    values = own.kv.values
    if own.band.back is None or own.kv.length == 0:
        return own, cross
    return replace(own, kv=replace(own.kv, values=nx.join([values[:, :, 1:], values[:, :, :1]], 2))), cross


def _reach(ahead: int) -> Injection:
    def wrap(true: Any) -> Any:
        return lambda config, kind: Band(true(config, kind).back, ahead)

    return patched(decoder, "decoder_band", wrap)


def _rows_swapped(true: Any) -> Any:
    return lambda self, encoded, trace: true(self, replace(encoded, hidden=encoded.hidden[::-1]), trace)


ATTENTION = [
    Fault(
        "X40",
        "the encoder's values are read last first",
        "short",
        f"{E}.layers.0.self_attn.attention",
        attended(_values_reversed),
    ),
    Fault(
        "X41",
        "attention weights are dropped as in training",
        "short",
        f"{E}.layers.0.self_attn.attention",
        operation(attention_weights=_dropout),
    ),
    Fault(
        "X42",
        "heads are merged without being moved behind the tokens",
        "short",
        f"{E}.layers.0.self_attn.attention",
        patched(attention, "merge_heads", lambda _: lambda x: x.reshape(x.shape[0], x.shape[2], -1)),
    ),
    Fault(
        "X43", "a decoder query sees one key ahead", "short", f"{D}.layers.0.self_attn.mask", _reach(1), status="mask"
    ),
    Fault(
        "X44", "a decoder query does not see itself", "short", f"{D}.layers.0.self_attn.mask", _reach(-1), status="mask"
    ),
    Fault(
        "X45",
        "batch rows are mixed up in the cache",
        "cross-cached",
        f"{D}.layers.0.self_attn.keys",
        _advanced(_rows_mixed),
        call=1,
    ),
    Fault(
        "X46",
        "one layer's cache is not advanced",
        "cross-cached",
        f"{D}.layers.2.self_attn.keys",
        _advanced(_one_stays),
        status="shape",
        call=1,
    ),
    Fault(
        "X47",
        "on sliding layers the values in the cache are one position off",
        "cross-cached",
        f"{D}.layers.0.self_attn.values",
        sources(_values_one_off),
        call=1,
    ),
    Fault(
        "X48",
        "the encoder's rows reach the decoder in another order",
        "equal-lengths",
        f"{D}.layers.0.self_attn.cross_k_proj",
        patched(T5Gemma2, "start", _rows_swapped),
    ),
]


# Pictures


def _columns_first(true: Any) -> Any:
    def patches(nx: Numerics, w: Any, config: Any, pixels: Array) -> Array:
        x, side = true(nx, w, config, pixels), config.patches_per_side
        return x.reshape(x.shape[0], side, side, -1).swapaxes(1, 2).reshape(x.shape)

    return patches


def _scaled_by_width(true: Any) -> Any:
    def attend(nx: Numerics, q: Array, sources: list[Source], scale: float) -> Array:
        return true(nx, q, sources, scale=scale * q.shape[1] ** -0.5)

    return attend


def _largest(true: Any) -> Any:
    """The largest of each square of patches, not their mean."""

    def project(nx: Numerics, w: Any, config: Config, encoded: Array, trace: Trace) -> Array:
        side = config.tokens_per_side
        kernel = config.vision.patches_per_side // side
        squares = encoded.reshape(encoded.shape[0], side, kernel, side, kernel, -1)
        pooled = nx.wide(squares).max(axis=(2, 4)).reshape(encoded.shape[0], side * side, -1).astype(encoded.dtype)
        return true(nx, w, config, encoded, Trace(lambda name, x: trace(name, pooled if name == "avg_pool" else x)))

    return project


PICTURES = [
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
        weighed(f"{TOWER}.embeddings.position_embedding.weight", _rolled),
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
        patched(vision, "project", _largest),
    ),
    Fault(
        "X55",
        "a picture's features are placed last first",
        "image",
        f"{E}.inputs_embeds",
        reordered(lambda features: features[:, ::-1]),
    ),
]


# Logits and losses


def _smoothed(true: Any) -> Any:
    """A tenth of the label's weight on all classes alike."""

    def loss(nx: Numerics, logits: Array, labels: Array) -> Array:
        uniform = [true(nx, logits, nx.xp.where(labels == heads.IGNORED, labels, c)) for c in range(logits.shape[-1])]
        return 0.9 * true(nx, logits, labels) + 0.1 * nx.xp.stack(uniform).mean()

    return loss


def _summed(true: Any) -> Any:
    return lambda nx, logits, labels: true(nx, logits, labels) * (labels != heads.IGNORED).sum(dtype=nx.wide_dtype)


def _scaled_table(true: Any) -> Any:
    def logits(nx: Numerics, table: Array, *rest: Any) -> Array:
        return true(nx, nx.cast(nx.wide(nx.weight(table)) * table.shape[-1] ** 0.5), *rest)

    return logits


HEADS = [
    Fault(
        "X60",
        "logits are made of the decoder's output before its last norm",
        "short",
        "lm_head",
        patched(decoder, "decode", before_the_last_norm),
    ),
    Fault(
        "X61", "logits are made with the scaled table", "short", "lm_head", patched(heads, "lm_logits", _scaled_table)
    ),
    Fault(
        "X62",
        "the final softcap twice",
        "short",
        "logits",
        patched(heads, "softcap", lambda true: lambda nx, x, cap: true(nx, true(nx, x, cap), cap)),
    ),
    Fault("X63", "labels are smoothed", "loss", "loss", patched(heads, "cross_entropy", _smoothed)),
    Fault("X64", "the loss is a sum", "loss", "loss", patched(heads, "cross_entropy", _summed)),
    Fault(
        "X65",
        "decoder ids made by shifting start with eos",
        "loss",
        f"{D}.embed_tokens",
        decoding(lambda t: replace(t, bos_token_id=t.eos_token_id[0])),
    ),
]

FAULTS = [*WEIGHTS, *STREAM, *ATTENTION, *PICTURES, *HEADS]
