"""Faults of the decoder's cache: D54 to D57, D75."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conformance.defects.attention import DECODER, Sources, attended
from conformance.defects.injection import Fault, Injection, patched
from conformance.defects.masks import sources
from t5g2ref import cache, decoder
from t5g2ref.attention import Keys
from t5g2ref.cache import Cache, KeyValue
from t5g2ref.config import TextConfig
from t5g2ref.masks import Band
from t5g2ref.numerics import Array, Numerics

E, D = "encoder.text_model", "decoder"


def _kept(more: int) -> Injection:
    """A sliding layer keeps W - 1 + more positions."""

    def wrap(true: Any) -> Any:
        return lambda kv, count: true(kv, None if count is None else count + more)

    return patched(cache.KeyValue, "last", wrap)


def _first_source(true: Any) -> Any:
    """Every source has the first one's cross keys."""
    kept: list[Cache] = []

    def start(*arguments: Any) -> Cache:
        kept.append(true(*arguments))
        return replace(kept[-1], cross=kept[0].cross, cross_valid=kept[0].cross_valid)

    return start


def _behind(change: Callable[[Band, int], Band]) -> Injection:
    """Another band on own keys behind a cache of so many positions."""

    def own(_: Numerics, __: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
        past = own.kv.start + own.kv.length
        return (replace(own, band=change(own.band, past)) if past else own), cross

    return sources(own)


def _from_the_top(band: Band, past: int) -> Band:
    """The call's first query has the mask's first row, as where a causal mask is laid to the upper left."""
    return Band(None if band.back is None else band.back + past, (band.ahead or 0) - past)


def _empty_slots(true: Any, nx: Numerics, q: Array, sources: Sources, start: int, **how: Any) -> Array:
    """Two slots of zeros behind the own keys are attended."""
    if len(sources) == 1:
        return true(nx, q, sources, first_query=start, **how)
    own, cross = sources
    slots = nx.xp.zeros_like(own.kv.keys[:, :, :1])
    slots = nx.join([slots, slots], 2)
    return true(nx, q, [own, Keys(KeyValue(slots, slots)), cross], first_query=start, **how)


def _preallocated(nx: Numerics, _: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
    """Behind the first call the encoder's keys are a buffer with three slots to spare, all of which are seen."""
    if own.kv.length == 0:
        return own, cross
    empty = nx.xp.zeros_like(cross.kv.keys[:, :, :3])
    kv = KeyValue(nx.join([cross.kv.keys, empty], 2), nx.join([cross.kv.values, empty], 2))
    return own, replace(cross, kv=kv, valid=nx.xp.ones((empty.shape[0], kv.length), dtype=bool))


def _counted(nx: Numerics, _: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
    """Behind the first call each row sees as many slots as it has tokens, from the first slot on."""
    if own.kv.length == 0 or cross.valid is None:
        return own, cross
    return own, replace(cross, valid=nx.xp.arange(cross.kv.length) < cross.valid.sum(axis=1, keepdims=True))


KEYS = f"{D}.layers.0.self_attn.keys"
FAULTS = [
    Fault(
        "D54",
        "a sliding layer keeps W - 2 positions",
        "decoder-steps",
        KEYS,
        _kept(-1),
        status="shape",
        call=4,
        variant="few",
    ),
    Fault(
        "D54",
        "a sliding layer keeps W positions",
        "decoder-steps",
        KEYS,
        _kept(1),
        status="shape",
        call=5,
        variant="many",
    ),
    Fault(
        "D55",
        "a second source is read by the first one's cross keys",
        "second-source",
        f"{D}.layers.0.self_attn.cross_keys",
        patched(decoder, "start", _first_source),
        status="shape",
        call=2,
    ),
    Fault(
        "D56",
        "behind a cache, the causal mask starts from the first key",
        "decoder-split",
        f"{D}.layers.0.self_attn.mask",
        _behind(_from_the_top),
        status="mask",
        call=1,
        variant="upper left",
    ),
    Fault(
        "D56",
        "behind a cache, a call's queries see each other, later ones too",
        "decoder-split",
        f"{D}.layers.0.self_attn.mask",
        _behind(lambda band, _: Band(band.back, None)),
        status="mask",
        call=1,
        variant="ahead",
    ),
    Fault("D57", "two unfilled cache slots are attended", "decoder-steps", DECODER, attended(_empty_slots)),
    Fault(
        "D75",
        "behind the first call the encoder's empty slots and its padding are attended",
        "padded-left-cached",
        f"{D}.layers.0.self_attn.cross_keys",
        sources(_preallocated),
        status="shape",
        call=1,
        variant="slots",
    ),
    Fault(
        "D75",
        "behind the first call the cross mask is the count of tokens, wherever the padding is",
        "padded-left-cached",
        f"{D}.layers.0.self_attn.mask",
        sources(_counted),
        status="mask",
        call=1,
        variant="lengths",
    ),
]
