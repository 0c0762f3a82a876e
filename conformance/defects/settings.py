"""Faults of settings that the stacks do not share: D71."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from conformance.defects.injection import Fault, configured
from t5g2ref.config import Config

E, D = "encoder.text_model", "decoder"
ROPE = "rotary_emb.full_attention.cos"

# The setting's word and name; the case, the tap in a layer's or stack's name and the status where a wrong one shows in
# the encoder, then in the decoder.
_Place = tuple[str, str, str]
_SETTINGS: tuple[tuple[str, str, _Place, _Place], ...] = (
    (
        "eps",
        "rms_norm_eps",
        ("short", "layers.0.pre_self_attn_layernorm", "values"),
        ("short", "layers.0.pre_self_attn_layernorm", "values"),
    ),
    (
        "scale",
        "query_pre_attn_scalar",
        ("short", "layers.0.self_attn.attention", "values"),
        ("short", "layers.0.self_attn.attention", "values"),
    ),
    ("theta", "rope_parameters", ("window", ROPE, "values"), ("window", ROPE, "values")),
    (
        "window",
        "sliding_window",
        ("window", "layers.0.self_attn.mask", "mask"),
        ("decoder-window", "layers.0.self_attn.mask", "mask"),
    ),
)


def _encoders(name: str) -> Callable[[Config], Config]:
    """The decoder has the encoder's."""
    return lambda c: replace(c, decoder=replace(c.decoder, **{name: getattr(c.encoder, name)}))


def _decoders(name: str) -> Callable[[Config], Config]:
    """The encoder has the decoder's."""
    return lambda c: replace(c, encoder=replace(c.encoder, **{name: getattr(c.decoder, name)}))


def _fault(word: str, whose: str, stack: str, place: _Place, change: Callable[[Config], Config]) -> Fault:
    case, tap, status = place
    title = f"the {whose}'s {word} is used in both stacks"
    return Fault(
        "D71", title, case, f"{stack}.{tap}", configured(change), status=status, variant=f"{word} of the {whose}"
    )


FAULTS = [
    fault
    for word, name, first, second in _SETTINGS
    for fault in (
        _fault(word, "decoder", E, first, _decoders(name)),
        _fault(word, "encoder", D, second, _encoders(name)),
    )
]
