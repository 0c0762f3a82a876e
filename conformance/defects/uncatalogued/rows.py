"""Faults of no catalogue that hang on how many rows there are, or on where a row begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.defects.injection import Fault, Injection, patched
from conformance.defects.masks import sources
from t5g2ref import attention, model
from t5g2ref.attention import Keys
from t5g2ref.config import TextConfig
from t5g2ref.numerics import Array, Numerics

E, D = "encoder.text_model", "decoder"


def _mask_from_the_first(nx: Numerics, _: TextConfig, own: Keys, cross: Keys) -> tuple[Keys, Keys]:
    """The mask begins at position 0, and the keys that are kept do not."""
    if own.valid is None or own.valid.shape[0] > 1 or not (dropped := own.kv.start):
        return own, cross
    turned = nx.xp.concatenate([own.valid[:, -dropped:], own.valid[:, :-dropped]], axis=1)
    return replace(own, valid=turned), cross


def _mask_over(axis_of: str) -> Injection:
    """Where both are as many, query head n is masked as row n is."""

    def wrap(true: Any) -> Any:
        def weights(nx: Numerics, q: Array, k: Array, scale: float, cap: Any, allowed: Any, grouped: Any) -> Array:
            batch, kv, _, rows, keys = grouped
            group = q.shape[2] // rows
            stack = keys == rows if axis_of == "encoder" else keys != rows
            if allowed is not None and stack and allowed.shape[0] == batch == kv * group:
                allowed = allowed.reshape(1, kv, group, rows, keys)
            return true(nx, q, k, scale, cap, allowed, grouped)

        return weights

    return patched(attention, "attention_weights", wrap)


def _first_is_text(true: Any) -> Any:
    """A placeholder is looked for behind another token."""

    def placed(embedded: Array, ids: Array, features: Array, image_id: int) -> Array:
        right = true(embedded, ids, features, image_id)
        right[:, 0] = embedded[:, 0]
        return right

    return placed


FAULTS = [
    Fault(
        "X99",
        "one row's mask is read from position 0 once the cache has dropped some",
        "masked-steps",
        f"{D}.layers.*.self_attn.mask",
        sources(_mask_from_the_first),
        status="mask",
        call=1,
    ),
    Fault(
        "X100",
        "a mask of rows is laid over as many heads in the encoder",
        "rows-as-heads",
        f"{E}.layers.0.self_attn.attention",
        _mask_over("encoder"),
        variant="encoder",
    ),
    Fault(
        "X100",
        "a mask of rows is laid over as many heads in the decoder",
        "rows-as-heads",
        f"{D}.layers.0.self_attn.attention",
        _mask_over("decoder"),
        call=1,
        variant="decoder",
    ),
    Fault(
        "X101",
        "a placeholder at the very beginning stays text",
        "images",
        f"{E}.inputs_embeds",
        patched(model, "place_images", _first_is_text),
    ),
]
