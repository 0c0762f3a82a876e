"""Faults of logits, classifiers and losses, and NaN where a number belongs: D50, D63 to D66."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.defects.injection import Fault, Injection, Spot, decoding, operation, patched, tapped
from t5g2ref import outputs as heads
from t5g2ref.numerics import Array, Numerics

E, D = "encoder.text_model", "decoder"


def loss(labels: Any) -> Injection:
    """`labels(nx, labels)` in place of a language model's."""

    def wrap(true: Any) -> Any:
        return lambda nx, logits, given: true(nx, logits, labels(nx, given))

    return patched(heads, "cross_entropy", wrap)


def _shifted_again(nx: Numerics, labels: Array) -> Array:
    """Position t is held against the label of t + 1."""
    return nx.xp.concatenate(
        [labels[..., 1:], nx.xp.full(labels[..., :1].shape, heads.IGNORED, dtype=labels.dtype)], axis=-1
    )


def _last(_: Any) -> Any:
    return lambda _, scores, *__: scores[:, -1]


def _count(_: Any) -> Any:
    return lambda nx, scores, ids, pad_id: scores[nx.xp.arange(ids.shape[0]), (ids != pad_id).sum(axis=1) - 1]


def planted(position: int, value: float) -> Any:
    """One number of a tap exchanged for this one."""

    def change(spot: Spot, x: Array) -> Array:
        flat = x.reshape(-1)
        there = spot.setting.nx.xp.arange(flat.shape[0]) == position % flat.shape[0]
        return spot.setting.nx.xp.where(there, flat.dtype.type(value), flat).reshape(x.shape)

    return change


def _squares_overflow(_: Any, nx: Numerics, x: Array, weight: Array, eps: float) -> Array:
    """The squares are float16's, and infinite from 65504 on; nothing else is rounded."""
    x = nx.wide(x)
    squares = nx.xp.where(x * x > 65504, nx.xp.inf, x * x)
    scale = 1.0 / nx.xp.sqrt(squares.mean(axis=-1, keepdims=True) + eps)
    return nx.cast(x * scale * (1.0 + nx.wide(nx.weight(weight))))


def _overflowing(spot: Spot, x: Array) -> Array:
    """Infinite beyond an eighth of float16's range, as in a residual that is kept eight times as large."""
    xp = spot.setting.nx.xp
    return xp.where(xp.abs(x) > 65504 / 8, xp.sign(x) * xp.inf, x)


FAULTS = [
    Fault(
        "D50",
        "the final softcap is left out",
        "short",
        "logits",
        decoding(lambda t: replace(t, final_logit_softcapping=None)),
        variant="missing",
    ),
    Fault(
        "D50",
        "a final softcap of 30 where none is set",
        "short",
        "logits",
        decoding(lambda t: replace(t, final_logit_softcapping=30.0)),
        variant="added",
        target="tiny-even",
    ),
    Fault(
        "D63",
        "RMSNorm's squares overflow",
        "short",
        f"{E}.layers.2.pre_self_attn_layernorm",
        operation(rms_norm=_squares_overflow),
        status="half",
        lane="float16",
        target="massive",
        variant="squares",
        alike=("D13",),
    ),
    Fault(
        "D63",
        "the residual is kept eight times too large and overflows",
        "short",
        f"{E}.layers.2",
        tapped(f"{E}.layers.?", _overflowing),
        status="nan",
        lane="float16",
        target="massive",
        variant="residual",
    ),
    Fault(
        "D64",
        "the score of the last position, pad or not",
        "sequence-single",
        "logits",
        patched(heads, "pool_last", _last),
        variant="last",
    ),
    Fault(
        "D64",
        "the score at the count of tokens, which is right on one side",
        "sequence-multi",
        "logits",
        patched(heads, "pool_last", _count),
        variant="count",
    ),
    Fault("D65", "the loss shifts the labels once more", "loss", "loss", loss(_shifted_again), variant="shifted"),
    Fault(
        "D65",
        "ignored labels count as id 0",
        "loss",
        "loss",
        loss(lambda nx, labels: nx.xp.maximum(labels, 0)),
        variant="pads",
    ),
    Fault(
        "D66",
        "one NaN",
        "short",
        f"{E}.layers.3.self_attn.o_proj",
        tapped(f"{E}.layers.3.self_attn.o_proj", planted(7, float("nan"))),
        status="nan",
        named=False,
    ),
]
