"""Faults of windows, causality and which query sees which key: D30 to D37."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conformance.defects.injection import Fault, Injection, decoding, patched, stacks
from t5g2ref import decoder, encoder
from t5g2ref.attention import Keys
from t5g2ref.cache import KeyValue
from t5g2ref.config import TextConfig
from t5g2ref.masks import EVERYTHING, Band
from t5g2ref.numerics import Array, Numerics

E, D = "encoder.text_model", "decoder"
ENCODER, DECODER = f"{E}.layers.0.self_attn.mask", f"{D}.layers.0.self_attn.mask"
Change = Callable[[Numerics, TextConfig, Keys, Keys], tuple[Keys, Keys]]


def _banded(change: Callable[[Band, int], Band], owner: Any = encoder, name: str = "encoder_band") -> Injection:
    """Another band on sliding layers, from the true one and the window."""

    def wrap(true: Any) -> Any:
        def band(config: TextConfig, kind: str) -> Band:
            window = config.window(kind)
            return true(config, kind) if window is None else change(true(config, kind), window)

        return band

    return patched(owner, name, wrap)


def _edges(back: int, ahead: int) -> Injection:
    """An encoder window wrong by so many keys."""
    return _banded(lambda band, _: Band((band.back or 0) + back, (band.ahead or 0) + ahead))


def _causal(true: Any) -> Any:
    return lambda config, kind: replace(true(config, kind), ahead=0)


def _causal_unpadded(true: Any) -> Any:
    """As where the mask is left out without padding, and the attention function is causal by default."""

    def attend(
        nx: Numerics, w: Any, config: TextConfig, x: Array, rope: Any, band: Band, valid: Array, *rest: Any
    ) -> Any:
        band = replace(band, ahead=0) if bool(valid.all()) else band
        return true(nx, w, config, x, rope, band, valid, *rest)

    return attend


def _other_kind(true: Any) -> Any:
    """The other kind of layer's mask."""

    def band(config: TextConfig, kind: str) -> Band:
        swapped: Band = true(config, "full_attention" if kind == "sliding_attention" else "sliding_attention")
        return swapped

    return band


def _inverted(t: TextConfig) -> TextConfig:
    swap = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
    return replace(t, layer_types=tuple(swap[kind] for kind in t.layer_types))


def sources(change: Change) -> Injection:
    """Other keys (own past, encoder) of the decoder's attention; the own ones' `valid` covers the new ones as well."""

    def wrap(true: Any) -> Any:
        def merged(
            nx: Numerics,
            w: Any,
            config: TextConfig,
            x: Array,
            rope: Any,
            past: KeyValue,
            band: Band,
            valid: Any,
            cross: Keys,
            trace: Any,
        ) -> Any:
            own, cross = change(nx, config, Keys(past, valid, band), cross)
            return true(nx, w, config, x, rope, own.kv, own.band, own.valid, cross, trace)

        return merged

    return patched(decoder, "merged_attention", wrap)


def _last_of_cross(nx: Numerics, config: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
    """On sliding layers only the encoder's last W keys are seen."""
    if own.band.back is None or cross.valid is None:
        return own, cross
    length = cross.kv.length
    return own, replace(cross, valid=cross.valid & (nx.xp.arange(length) >= length - config.sliding_window))


def _banded_cross(_: Numerics, config: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
    """On sliding layers, only keys whose position is nearer than W to the query's."""
    width = config.sliding_window - 1
    return own, cross if own.band.back is None else replace(cross, band=Band(width, width))


def _truncated(first_call: bool) -> Change:
    """On sliding layers the cache holds the encoder's last W keys."""

    def change(_: Numerics, config: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
        if own.band.back is None or (own.kv.length == 0 and not first_call):
            return own, cross
        kv = cross.kv.last(config.sliding_window)
        valid = None if cross.valid is None else cross.valid[:, -kv.length :]
        return own, Keys(kv, valid, cross.band)

    return change


FAULTS = [
    Fault(
        "D30",
        "the encoder's window is W - 1 on each side",
        "window",
        ENCODER,
        _banded(lambda _, w: Band(w - 1, w - 1)),
        status="mask",
    ),
    *(
        Fault(
            "D31",
            f"the encoder's window is one key too {length} on the {side}",
            "window",
            ENCODER,
            _edges(back, ahead),
            status="mask",
            variant=f"{side} {length}",
        )
        for side, length, back, ahead in (
            ("left", "short", -1, 0),
            ("left", "long", 1, 0),
            ("right", "short", 0, -1),
            ("right", "long", 0, 1),
        )
    ),
    Fault(
        "D31",
        "W - W // 2 - 1 keys on the right, which is one too few where W is even",
        "window",
        ENCODER,
        _banded(lambda band, w: Band(band.back, w - w // 2 - 1)),
        status="mask",
        variant="even",
        target="tiny-even",
    ),
    Fault(
        "D32",
        "the encoder has no window",
        "padded-right",  # without padding it is D69 to the bit
        ENCODER,
        _banded(lambda *_: EVERYTHING),
        status="mask",
    ),
    Fault(
        "D33",
        "sliding and full layers are exchanged in both stacks",
        "window",
        f"{E}.layers.0.self_attn.q_rope",
        stacks(_inverted),
        variant="inverted",
    ),
    Fault(
        "D33",
        "the decoder's pattern is shifted by one layer",
        "window",
        f"{D}.layers.1.self_attn.q_rope",
        decoding(lambda t: replace(t, layer_types=(*t.layer_types[1:], t.layer_types[0]))),
        variant="shifted",
    ),
    Fault(
        "D33",
        "sliding layers have the full layers' mask, and full layers theirs",
        "window",
        ENCODER,
        patched(encoder, "encoder_band", _other_kind),
        status="mask",
        variant="masks",
    ),
    Fault(
        "D34",
        "a decoder query sees W keys behind its own",
        "decoder-window",
        DECODER,
        _banded(lambda _, w: Band(w, 0), decoder, "decoder_band"),
        status="mask",
        variant="mask",
    ),
    Fault(
        "D34",
        "a decoder query sees W keys behind its own, and the cache holds them",
        "decoder-steps",
        f"{D}.layers.0.self_attn.keys",
        decoding(lambda t: replace(t, sliding_window=t.sliding_window + 1)),
        status="shape",
        call=5,
        variant="cache",
    ),
    Fault(
        "D35",
        "the encoder is causal",
        "short",
        ENCODER,
        patched(encoder, "encoder_band", _causal),
        status="mask",
    ),
    Fault(
        "D35",
        "the encoder is causal where nothing is padded",
        "window",
        ENCODER,
        patched(encoder, "self_attention", _causal_unpadded),
        status="mask",
        variant="unpadded",
    ),
    Fault(
        "D36",
        "sliding layers keep the encoder's last W keys in the cache",
        "cross-cached",
        f"{D}.layers.0.self_attn.cross_keys",
        sources(_truncated(first_call=False)),
        status="shape",
        call=1,
        variant="cached",
    ),
    Fault(
        "D36",
        "sliding layers read the encoder's last W keys",
        "cross-cached",
        f"{D}.layers.0.self_attn.cross_keys",
        sources(_truncated(first_call=True)),
        status="shape",
        variant="always",
    ),
    Fault(
        "D37",
        "on sliding layers the encoder's last W keys are seen",
        "window",
        DECODER,
        sources(_last_of_cross),
        status="mask",
        variant="last",
    ),
    Fault(
        "D37",
        "on sliding layers the window is laid over the encoder's positions",
        "window",
        DECODER,
        sources(_banded_cross),
        status="mask",
        variant="positions",
    ),
]
