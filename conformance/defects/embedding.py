"""Faults of the embedding: D01 to D08."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conformance.defects.injection import (
    Fault,
    Injection,
    Setting,
    Spot,
    configured,
    decoding,
    operation,
    patched,
    rounded,
    tapped,
    weighed,
)
from t5g2ref import embedding, model
from t5g2ref import outputs as heads
from t5g2ref.numerics import Array, Numerics

E, D = "encoder.text_model", "decoder"
TABLE = "encoder.text_model.embed_tokens"


def _embed(scaled: Callable[[Array, float], Array], eoi: bool = True) -> Injection:
    """`scaled(rows, √D)` in place of the product; `eoi`: with the end-of-image id's own row."""

    def embed(_: Any, nx: Numerics, w: Any, ids: Array, eoi_id: int) -> Array:
        rows = nx.wide(nx.array(w.weight[ids]))
        x = nx.cast(scaled(rows, embedding.embed_scale(nx, rows.shape[-1])))
        return nx.xp.where((ids == eoi_id)[..., None], nx.array(w.eoi_embedding), x) if eoi else x

    return operation(embed=embed)


def _scaled_by(factor: Callable[[Setting], float]) -> Callable[[Spot, Array], Array]:
    return lambda spot, x: spot.setting.nx.cast(spot.setting.nx.wide(x) * factor(spot.setting))


def _ordinary_eoi(first_call: int = 0) -> Callable[[Spot, Array], Array]:
    """The end-of-image id's row as any other's, from this call on."""

    def change(spot: Spot, x: Array) -> Array:
        s, nx = spot.setting, spot.setting.nx
        row = nx.wide(nx.array(s.weights[f"{TABLE}.weight"][s.config.eoi_token_index]))
        ordinary = nx.cast(row * embedding.embed_scale(nx, x.shape[-1]))
        there = (spot.ids == s.config.eoi_token_index)[..., None]
        return x if spot.call < first_call else nx.xp.where(there, ordinary, x)

    return change


def _stale_head(true: Any) -> Any:
    return lambda nx, table, *rest: true(nx, nx.cast(nx.wide(nx.weight(table)) * 0.98), *rest)


FAULTS = [
    Fault("D01", "rows are not scaled by √hidden", "short", f"{E}.embed_tokens", _embed(lambda x, _: x)),
    Fault(
        "D01",
        "the decoder's rows are not scaled by √hidden",
        "short",
        f"{D}.embed_tokens",
        tapped(f"{D}.embed_tokens", _scaled_by(lambda s: 1 / s.scale)),
        variant="decoder",
    ),
    Fault(
        "D02",
        "√hidden is not rounded to the table's type",
        "short",
        f"{E}.embed_tokens",
        rounded("D02"),
        status="half",
        lane="bfloat16",
    ),
    Fault("D03", "rows are scaled twice", "short", f"{E}.embed_tokens", _embed(lambda x, scale: x * scale * scale)),
    Fault(
        "D03",
        "the decoder's rows are scaled twice",
        "short",
        f"{D}.embed_tokens",
        tapped(f"{D}.embed_tokens", _scaled_by(lambda s: s.scale)),
        variant="decoder",
    ),
    Fault(
        "D05",
        "the end-of-image id has an ordinary row",
        "eoi",
        f"{E}.embed_tokens",
        _embed(lambda x, scale: x * scale, eoi=False),
        variant="missing",
        alike=("D06",),
    ),
    Fault(
        "D05",
        "the end-of-image row is scaled",
        "eoi",
        f"{E}.embed_tokens",
        weighed(f"{TABLE}.eoi_embedding", lambda w, s: w * s.scale),
        variant="scaled",
    ),
    *(
        Fault(
            "D05",
            f"the {name} has an ordinary row for the end-of-image id",
            "eoi",
            f"{stack}.embed_tokens",
            tapped(f"{stack}.embed_tokens", _ordinary_eoi()),
            variant=f"{other} only",
        )
        for name, other, stack in (("decoder", "encoder", D), ("encoder", "decoder", E))
    ),
    Fault(
        "D05",
        "an ordinary row for the end-of-image id in cached decoder steps",
        "eoi-cached",
        f"{D}.embed_tokens",
        tapped(f"{D}.embed_tokens", _ordinary_eoi(1)),
        call=1,
        variant="cached",
    ),
    Fault(
        "D06",
        "the end-of-image id is a constant, another than the configuration's",
        "eoi",
        f"{E}.embed_tokens",
        configured(lambda c: replace(c, eoi_token_index=c.encoder.vocab_size - 1)),
        variant="eoi",
        alike=("D05",),
    ),
    Fault(
        "D06",
        "the image id is a constant that no input has: features are placed nowhere",
        "image",
        f"{E}.inputs_embeds",
        patched(model, "place_images", lambda _: lambda embedded, *_: embedded),
        variant="image",
    ),
    Fault(
        "D07",
        "the logits come from a stale copy of the table, 0.98 of it",
        "short",
        "lm_head",
        patched(heads, "lm_logits", _stale_head),
        variant="head",
        named=False,
    ),
    Fault(
        "D07",
        "the decoder embeds by a stale copy of the table, 0.98 of it",
        "short",
        f"{D}.embed_tokens",
        tapped(f"{D}.embed_tokens", _scaled_by(lambda _: 0.98)),
        variant="decoder",
        named=False,
    ),
    Fault(
        "D08",
        "decoder ids made by shifting start with pad",
        "loss",
        f"{D}.embed_tokens",
        decoding(lambda t: replace(t, bos_token_id=t.pad_token_id)),
    ),
]
