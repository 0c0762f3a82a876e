"""Faults of padding, and of the two halves of the merged mask: D38, D39, D42, D43, D70, D72."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.cases.case import Run
from conformance.defects.injection import Fault, Setting, inputs, joined, patched
from conformance.defects.masks import Change, sources
from t5g2ref import attention, decoder, encoder
from t5g2ref.attention import Keys
from t5g2ref.cache import Cache
from t5g2ref.config import TextConfig
from t5g2ref.masks import Band
from t5g2ref.numerics import Array, Numerics

E, D = "encoder.text_model", "decoder"
ENCODER, DECODER = f"{E}.layers.0.self_attn.mask", f"{D}.layers.0.self_attn.mask"


def _cross_padding(cached: bool) -> Change:
    def change(_: Numerics, __: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
        return own, replace(cross, valid=None) if own.kv.length or not cached else cross

    return change


def _no_encoder_padding(true: Any) -> Any:
    def encode(nx: Numerics, w: Any, config: TextConfig, x: Array, positions: Array, valid: Array, *rest: Any) -> Any:
        return true(nx, w, config, x, positions, nx.xp.ones(valid.shape, dtype=bool), *rest)

    return encode


def _no_decoder_padding(true: Any) -> Any:
    def decode(
        nx: Numerics, w: Any, config: TextConfig, x: Array, positions: Array, cache: Cache, valid: Array, *rest: Any
    ) -> Any:
        return true(nx, w, config, x, positions, cache, nx.xp.ones(valid.shape, dtype=bool), *rest)

    return decode


def _past_padding_forgotten(true: Any) -> Any:
    def decode(nx: Numerics, w: Any, config: TextConfig, x: Array, positions: Array, cache: Cache, *rest: Any) -> Any:
        return true(nx, w, config, x, positions, replace(cache, valid=nx.xp.ones(cache.valid.shape, dtype=bool)), *rest)

    return decode


def _halves_of_mask(true: Any) -> Any:
    """What is asked: which keys of all sources may be seen; answered with the encoder's first."""

    def swapped(nx: Numerics, sources: Any, first: int, last: int) -> Any:
        mask = true(nx, sources, first, last)
        if len(sources) == 1 or mask is None:
            return mask
        low, high = sources[0].span(first, last)
        return nx.xp.concatenate([mask[..., high - low :], mask[..., : high - low]], axis=-1)

    return swapped


def _halves_of_shown(true: Any) -> Any:
    def swapped(nx: Numerics, sources: Any, start: int, length: int) -> Any:
        mask, own = true(nx, sources, start, length), sources[0].kv.length
        return mask if len(sources) == 1 else nx.xp.concatenate([mask[..., own:], mask[..., :own]], axis=-1)

    return swapped


def _without_zeros(run: Run, _: Setting) -> Run:
    """The encoder's mask leaves out every id 0."""
    return replace(run, attention_mask=(run.encoder_valid & (run.input_ids != 0)).astype(int))


def _without_decoder_zeros(run: Run, _: Setting) -> Run:
    return replace(run, decoder_attention_mask=(run.decoder_valid & (run.decoder_input_ids != 0)).astype(int))


def _left_pads_too(nx: Numerics, band: Band, valid: Array) -> Array:
    """On sliding layers what stands before a row's first token counts as valid."""
    return valid if band.back is None else valid | (nx.xp.cumsum(valid, axis=1) == 0)


def _encoder_left_pads(true: Any) -> Any:
    def attend(
        nx: Numerics, w: Any, config: TextConfig, x: Array, rope: Any, band: Band, valid: Array, *rest: Any
    ) -> Any:
        return true(nx, w, config, x, rope, band, _left_pads_too(nx, band, valid), *rest)

    return attend


def _decoder_left_pads(nx: Numerics, _: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
    return (own if own.valid is None else replace(own, valid=_left_pads_too(nx, own.band, own.valid))), cross


HALVES = patched(attention, "visible", _halves_of_mask)
FAULTS = [
    Fault(
        "D38",
        "the encoder sees padding",
        "padded-right",
        ENCODER,
        patched(encoder, "encode", _no_encoder_padding),
        status="mask",
    ),
    Fault(
        "D39",
        "the decoder sees the encoder's padding",
        "padded-right",
        DECODER,
        sources(_cross_padding(cached=False)),
        status="mask",
    ),
    Fault(
        "D39",
        "the decoder sees the encoder's padding in cached calls",
        "padded-left-cached",
        DECODER,
        sources(_cross_padding(cached=True)),
        status="mask",
        call=1,
        variant="cached",
    ),
    Fault(
        "D42",
        "the decoder sees its own padding",
        "padded-left",
        DECODER,
        patched(decoder, "decode", _no_decoder_padding),
        status="mask",
    ),
    Fault(
        "D42",
        "the decoder sees the padding of earlier calls",
        "padded-left-cached",
        DECODER,
        patched(decoder, "decode", _past_padding_forgotten),
        status="mask",
        call=1,
        variant="cached",
    ),
    Fault(
        "D43",
        "the mask has the encoder's half first",
        "equal-lengths",
        DECODER,
        joined(HALVES, patched(attention, "dense_mask", _halves_of_shown)),
        status="mask",
        variant="mask",
    ),
    Fault(
        "D43",
        "keys and values have the encoder's half first, the mask has not",
        "equal-lengths",
        f"{D}.layers.0.self_attn.attention",
        HALVES,
        variant="attention",
    ),
    Fault(
        "D70",
        "the encoder takes id 0 for padding",
        "padded-right",
        ENCODER,
        inputs(_without_zeros),
        status="mask",
        variant="encoder",
    ),
    Fault(
        "D70",
        "the decoder takes id 0 for padding",
        "padded-right",
        DECODER,
        inputs(_without_decoder_zeros),
        status="mask",
        variant="decoder",
    ),
    Fault(
        "D72",
        "the encoder's sliding layers see padding on the left",
        "padded-left",
        ENCODER,
        patched(encoder, "self_attention", _encoder_left_pads),
        status="mask",
        variant="encoder",
    ),
    Fault(
        "D72",
        "the decoder's sliding layers see their own padding on the left",
        "padded-left",
        DECODER,
        sources(_decoder_left_pads),
        status="mask",
        variant="decoder",
    ),
]
