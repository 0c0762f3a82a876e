"""Faults of layers that have a window, beside those of its width: D67 to D69."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.defects.injection import Fault, Injection, joined, patched, stacks
from conformance.defects.masks import sources
from t5g2ref import cache, decoder, encoder
from t5g2ref.attention import Keys
from t5g2ref.config import Ropes, TextConfig
from t5g2ref.masks import EVERYTHING, Band
from t5g2ref.numerics import Array, Numerics
from t5g2ref.trace import OFF, Trace

E, D = "encoder.text_model", "decoder"
FULL, SLIDING = "full_attention", "sliding_attention"


def _other_names(t: TextConfig) -> TextConfig:
    """Each layer keeps its own table; which of the two has a window is exchanged."""
    other = {FULL: SLIDING, SLIDING: FULL}
    ropes = Ropes(t.rope_parameters[FULL], t.rope_parameters[SLIDING])
    return replace(t, layer_types=tuple(other[kind] for kind in t.layer_types), rope_parameters=ropes)


def _one_further(true: Any) -> Any:
    """Sliding layers' tables are made for the next position."""

    def rope_tables(nx: Numerics, config: TextConfig, positions: Array, trace: Trace = OFF) -> Any:
        found: dict[str, Any] = {}
        for kind in sorted(set(config.layer_types)):
            found |= true(nx, replace(config, layer_types=(kind,)), positions + (kind == SLIDING), trace)
        return found

    return rope_tables


def _unpadded(true: Any) -> Any:
    """The encoder's window stands in a mask, which is left out where nothing is padded."""

    def attend(
        nx: Numerics, w: Any, config: TextConfig, x: Array, rope: Any, band: Band, valid: Array, *rest: Any
    ) -> Any:
        return true(nx, w, config, x, rope, EVERYTHING if bool(valid.all()) else band, valid, *rest)

    return attend


def _causal_alone(_: Numerics, __: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
    """Where the decoder's mask is left out, attention is causal and no more."""
    absent = own.valid is None or bool(own.valid.all())
    return (replace(own, band=Band(None, 0)) if absent else own), cross


def _whole_past() -> Injection:
    """Nothing leaves the cache, and a single query sees all of it."""
    length: list[int] = []

    def remembered(true: Any) -> Any:
        def decode(nx: Numerics, w: Any, config: TextConfig, x: Array, *rest: Any) -> Any:
            length[:] = [x.shape[1]]
            return true(nx, w, config, x, *rest)

        return decode

    def band(true: Any) -> Any:
        return lambda config, kind: Band(None, 0) if length == [1] else true(config, kind)

    return joined(
        patched(cache.KeyValue, "last", lambda _: lambda kv, _: kv),
        patched(decoder, "decoder_band", band),
        patched(decoder, "decode", remembered),
    )


def _late() -> Injection:
    return joined(patched(encoder, "rope_tables", _one_further), patched(decoder, "rope_tables", _one_further))


FAULTS = [
    Fault(
        "D67",
        "sliding and full layers are exchanged in both stacks, and their tables under their names as well",
        "window",
        f"{E}.rotary_emb.{FULL}.cos",
        stacks(_other_names),
    ),
    Fault("D68", "sliding layers' positions are one too large", "window", f"{E}.rotary_emb.{SLIDING}.cos", _late()),
    Fault(
        "D69",
        "the encoder's window is ignored where nothing is padded",
        "second-source",
        f"{E}.layers.0.self_attn.mask",
        patched(encoder, "self_attention", _unpadded),
        status="mask",
        call=2,
        variant="encoder",
    ),
    Fault(
        "D69",
        "the decoder's window is ignored where nothing is padded",
        "decoder-window",
        f"{D}.layers.0.self_attn.mask",
        sources(_causal_alone),
        status="mask",
        variant="decoder",
    ),
    Fault(
        "D69",
        "the cache keeps everything, and a single query sees all of it whatever the window",
        "decoder-steps",
        f"{D}.layers.0.self_attn.keys",
        _whole_past(),
        status="shape",
        call=5,
        variant="one query",
    ),
]
