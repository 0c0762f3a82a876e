"""Faults of attention: D25, D40, D41, D44 to D51."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conformance.defects.injection import (
    Fault,
    Injection,
    Setting,
    both_lanes,
    both_stacks,
    joined,
    operation,
    patched,
    stacks,
)
from t5g2ref import attention, decoder
from t5g2ref.attention import Keys
from t5g2ref.config import TextConfig
from t5g2ref.numerics import Array, Numerics
from t5g2ref.ops import masked_softmax
from t5g2ref.rope import rotate

E, D = "encoder.text_model", "decoder"
ENCODER, DECODER = f"{E}.layers.0.self_attn.attention", f"{D}.layers.0.self_attn.attention"
Sources = list[Keys]


def attended(change: Callable[..., Array]) -> Injection:
    """`change(true, nx, q, sources, start, scale=…, cap=…)` in place of `attend`, in the text stacks."""

    def wrap(true: Any) -> Any:
        def attend(nx: Numerics, q: Array, sources: Sources, *, first_query: int = 0, **how: Any) -> Array:
            return change(true, nx, q, sources, first_query, **how)

        return attend

    return patched(attention, "attend", wrap)


def _unrotated_for_cross() -> Injection:
    """q · k for a query turned back by R is q · R k for the turned one: per query, the cross keys are turned."""
    rope: list[Any] = []

    def attend(true: Any, nx: Numerics, q: Array, sources: Sources, start: int, **how: Any) -> Array:
        if len(sources) == 1:
            return true(nx, q, sources, first_query=start, **how)
        own, cross = sources
        rows = []
        shape = (*cross.kv.keys.shape[:1], cross.kv.length, q.shape[-1])
        for t in range(q.shape[2]):
            cos, sin = (nx.xp.broadcast_to(table[:, t : t + 1], shape) for table in rope[0])
            turned = replace(cross, kv=replace(cross.kv, keys=rotate(nx, cross.kv.keys, cos, sin)))
            rows.append(true(nx, q[:, :, t : t + 1], [own, turned], first_query=start + t, **how))
        return nx.join(rows, 2)

    def remembered(true: Any) -> Any:
        def merged(nx: Numerics, w: Any, config: TextConfig, x: Array, tables: Any, *rest: Any) -> Any:
            rope[:] = [tables]
            return true(nx, w, config, x, tables, *rest)

        return merged

    return joined(attended(attend), patched(decoder, "merged_attention", remembered))


def _scores(nx: Numerics, q: Array, k: Array, scale: float, cap: float | None) -> Array:
    scores = nx.product(q, k.swapaxes(-1, -2)) * scale
    return scores if cap is None else cap * nx.xp.tanh(scores / cap)


def _additive(
    definition: Any, nx: Numerics, q: Array, k: Array, scale: float, cap: Any, allowed: Any, grouped: Any
) -> Array:
    if allowed is None:
        return definition(nx, q, k, scale, cap, allowed, grouped)
    scores = _scores(nx, q, k, scale, cap).reshape(grouped)
    return masked_softmax(nx, scores + allowed.astype(scores.dtype), None)


def _nan_rows(definition: Any, nx: Numerics, scores: Array, allowed: Any) -> Array:
    """0 / 0 where nothing may be seen."""
    weights = definition(nx, scores, allowed)
    return weights if allowed is None else nx.xp.where(allowed.any(axis=-1, keepdims=True), weights, nx.xp.nan)


def _two_softmaxes(share: float) -> Callable[..., Array]:
    def attend(true: Any, nx: Numerics, q: Array, sources: Sources, start: int, **how: Any) -> Array:
        if len(sources) == 1:
            return true(nx, q, sources, first_query=start, **how)
        own, cross = (nx.wide(true(nx, q, [source], first_query=start, **how)) for source in sources)
        return nx.cast((own + cross) * share)

    return attend


def _biased(
    definition: Any, nx: Numerics, q: Array, k: Array, scale: float, cap: Any, allowed: Any, grouped: Any
) -> Array:
    """A bias by distance, on the text stacks."""
    if allowed is None:
        return definition(nx, q, k, scale, cap, allowed, grouped)
    places = nx.xp.arange(grouped[-1])[None] - nx.xp.arange(grouped[-2])[:, None]
    scores = _scores(nx, q, k, scale, cap).reshape(grouped)
    return masked_softmax(nx, scores - (0.1 * nx.xp.abs(places)).astype(scores.dtype), allowed)


def _tiled(true: Any, nx: Numerics, q: Array, sources: Sources, start: int, **how: Any) -> Array:
    """Query head h reads kv head h mod K."""
    batch, heads, length, width = q.shape
    groups = heads // sources[0].kv.keys.shape[1]
    q = q.reshape(batch, groups, -1, length, width).swapaxes(1, 2).reshape(q.shape)
    out = true(nx, q, sources, first_query=start, **how)
    return out.reshape(batch, -1, groups, length, width).swapaxes(1, 2).reshape(out.shape)


def _headed(s: Setting) -> Setting:
    """head_dim is hidden / heads, and every weight of a head is cut to it."""
    weights = dict(s.weights)
    for prefix, text in ((f"{E}.", s.config.encoder), (f"{D}.", s.config.decoder)):
        width = text.hidden_size // text.num_attention_heads
        sizes = {"q_proj": text.num_attention_heads * width, "k_proj": text.num_key_value_heads * width}
        sizes |= {"v_proj": sizes["k_proj"], "q_norm": width, "k_norm": width}
        for name in weights:
            part = name.split(".")[-2]
            if name.startswith(prefix) and part in sizes:
                weights[name] = weights[name][: sizes[part]]
            elif name.startswith(prefix) and name.endswith("o_proj.weight"):
                weights[name] = weights[name][:, : sizes["q_proj"]]
    cut = stacks(lambda t: replace(t, head_dim=t.hidden_size // t.num_attention_heads)).setting(s)
    return replace(cut, weights=weights)


FAULTS = [
    Fault("D25", "queries are not turned for the encoder's half", "short", DECODER, _unrotated_for_cross()),
    Fault(
        "D40",
        "the mask's 1 and 0 are added to the scores",
        "padded-right",
        ENCODER,
        operation(attention_weights=_additive),
    ),
    Fault(
        "D41",
        "a row with nothing to attend is NaN",
        "padded-left",
        ENCODER,
        operation(masked_softmax=_nan_rows),
        status="nan",
    ),
    Fault(
        "D44",
        "own keys and the encoder's have a softmax each, summed",
        "short",
        DECODER,
        attended(_two_softmaxes(1.0)),
        variant="summed",
    ),
    Fault(
        "D44",
        "own keys and the encoder's have a softmax each, averaged",
        "short",
        DECODER,
        attended(_two_softmaxes(0.5)),
        variant="averaged",
    ),
    Fault(
        "D45",
        "a bias by distance is added to the scores",
        "short",
        ENCODER,
        operation(attention_weights=_biased),
        named=False,
    ),
    Fault(
        "D46",
        "scores are scaled by head_dim",
        "short",
        ENCODER,
        stacks(lambda t: replace(t, query_pre_attn_scalar=float(t.head_dim))),
    ),
    Fault("D47", "kv heads are tiled", "short", ENCODER, attended(_tiled)),
    Fault(
        "D48",
        "head_dim is hidden / heads, and the weights are cut to fit",
        "short",
        f"{E}.rotary_emb.full_attention.cos",
        Injection(_headed, how="another configuration, and weights cut to it"),
        status="shape",
    ),
    Fault(
        "D49",
        "scores have a softcap of 50, where none is set",
        "short",
        ENCODER,
        stacks(lambda t: replace(t, attn_logit_softcapping=50.0)),
        variant="added",
    ),
    Fault(
        "D49",
        "the configuration's softcap of the scores is ignored",
        "short",
        ENCODER,
        stacks(lambda t: replace(t, attn_logit_softcapping=None)),
        variant="ignored",
        given=both_stacks(lambda t: replace(t, attn_logit_softcapping=5.0)),
    ),
    *both_lanes(
        "D51",
        "scores and softmax are rounded to bfloat16 at every step",
        "window",
        ENCODER,
        f"{E}.layers.*.self_attn.attention",
    ),
]
