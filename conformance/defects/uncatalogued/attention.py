"""Faults of no catalogue: attention and cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.defects.attention import attended
from conformance.defects.injection import Fault, Injection, operation, patched
from conformance.defects.masks import sources
from t5g2ref import attention, cache, decoder
from t5g2ref.attention import Keys
from t5g2ref.cache import Cache, KeyValue
from t5g2ref.masks import Band
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array, Numerics

E, D, TOWER, PROJECTOR = "encoder.text_model", "decoder", "encoder.vision_tower", "encoder.multi_modal_projector"
ROPE = "rotary_emb.full_attention.cos"


def _values_reversed(true: Any, nx: Numerics, q: Array, sources: list[Keys], start: int, **how: Any) -> Array:
    if len(sources) == 1:
        kv = sources[0].kv
        sources = [replace(sources[0], kv=replace(kv, values=kv.values[:, :, ::-1]))]
    return true(nx, q, sources, first_query=start, **how)


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


def _values_one_off(nx: Numerics, _: Any, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
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


FAULTS = [
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
