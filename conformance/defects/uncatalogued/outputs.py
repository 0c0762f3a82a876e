"""Faults of no catalogue: logits and losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.defects.injection import Fault, decoding, patched
from conformance.defects.norms import before_the_last_norm
from t5g2ref import decoder
from t5g2ref import outputs as heads
from t5g2ref.numerics import Array, Numerics

E, D, TOWER, PROJECTOR = "encoder.text_model", "decoder", "encoder.vision_tower", "encoder.multi_modal_projector"
ROPE = "rotary_emb.full_attention.cos"


def _smoothed(true: Any) -> Any:
    """A tenth of the label's weight on all classes alike."""

    def loss(nx: Numerics, logits: Array, labels: Array) -> Array:
        uniform = [true(nx, logits, nx.xp.where(labels == heads.IGNORED, labels, c)) for c in range(logits.shape[-1])]
        return 0.9 * true(nx, logits, labels) + 0.1 * nx.xp.stack(uniform).mean()

    return loss


def _summed(true: Any) -> Any:
    return lambda nx, logits, labels: true(nx, logits, labels) * (labels != heads.IGNORED).sum(dtype=nx.wide_dtype)


def _scaled_table(true: Any) -> Any:
    def logits(nx: Numerics, table: Array, *rest: Any) -> Array:
        return true(nx, nx.cast(nx.wide(nx.weight(table)) * table.shape[-1] ** 0.5), *rest)

    return logits


FAULTS = [
    Fault(
        "X60",
        "logits are made of the decoder's output before its last norm",
        "short",
        "lm_head",
        patched(decoder, "decode", before_the_last_norm),
    ),
    Fault(
        "X61", "logits are made with the scaled table", "short", "lm_head", patched(heads, "lm_logits", _scaled_table)
    ),
    Fault(
        "X62",
        "the final softcap twice",
        "short",
        "logits",
        patched(heads, "softcap", lambda true: lambda nx, x, cap: true(nx, true(nx, x, cap), cap)),
    ),
    Fault("X63", "labels are smoothed", "loss", "loss", patched(heads, "cross_entropy", _smoothed)),
    Fault("X64", "the loss is a sum", "loss", "loss", patched(heads, "cross_entropy", _summed)),
    Fault(
        "X65",
        "decoder ids made by shifting start with eos",
        "loss",
        f"{D}.embed_tokens",
        decoding(lambda t: replace(t, bos_token_id=t.eos_token_id[0])),
    ),
]
