"""What each row's answer begins with: bos alone, or ids that the caller gives, of one length or padded in front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from t5g2ref import inputs
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array, Numerics

MASK = "decoder_attention_mask"


@dataclass(frozen=True)
class Start:
    """The start's ids (B, n), and bool (B, n): False where they are padding; None where nothing is."""

    ids: Array
    mask: Array | None = None


def start_of(model: T5Gemma2, batch: int, given: Any = None, mask: Any = None, first: int | None = None) -> Start:
    """The first id (bos) alone, or the given ones (B, n) with it in front where they do not begin with it.

    A mask (B, n) says where starts of several lengths are padded. Padding counts as a position, and what is put in
    front stands before it: both as in transformers, from 5.3 on.

    Raises:
        ValueError: a wrong shape; padding elsewhere than in front; rows of which some begin with it and some do not.
    """
    nx, bos = model.nx, model.config.decoder.bos_token_id if first is None else first
    front = nx.xp.full((batch, 1), bos)
    if given is None:
        if mask is not None:
            raise ValueError(f"{MASK}: expected decoder_input_ids beside it, found none")
        return Start(front)
    given = inputs.array(nx, "decoder_input_ids", given)
    if given.ndim != 2 or given.shape[0] != batch:
        raise ValueError(f"decoder_input_ids: expected ({batch}, length), found shape {tuple(given.shape)}")
    kept = None if mask is None else _padded_in_front(nx, mask, given.shape)
    if _begins(nx, given, kept, bos):
        return Start(given, kept)
    in_front = [nx.xp.ones((batch, 1), dtype=bool), kept]
    return Start(
        nx.xp.concatenate([front, given], axis=1), None if kept is None else nx.xp.concatenate(in_front, axis=1)
    )


def _padded_in_front(nx: Numerics, mask: Any, shape: tuple[int, ...]) -> Array:
    """bool (B, n): rows of False and then True, the longest all True."""
    kept = inputs.keep_mask(nx, MASK, mask, shape)
    seen = nx.backend.host(kept)
    if (seen[:, :-1] > seen[:, 1:]).any() or not seen[:, -1:].all():
        raise ValueError(f"{MASK}: expected 0 (padding) in front and at least one 1 behind it, in every row")
    if not seen[:, :1].any(axis=0).all():
        raise ValueError(f"{MASK}: expected a row without padding, found none; leave out what is padding in all")
    return kept


def _begins(nx: Numerics, given: Array, kept: Array | None, bos: int) -> bool:
    """Whether rows begin with bos; ValueError where some do. Nothing may be put in front where padding is bos."""
    if not given.shape[1]:
        return False
    is_bos = nx.backend.host(given == bos)
    first = 0 if kept is None else nx.backend.host(kept).argmax(axis=1)
    begins = is_bos[range(len(is_bos)), first]
    if begins.any() and not begins.all():
        raise ValueError(f"decoder_input_ids: some rows begin with bos ({bos}) and some do not; begin all or none")
    if not begins.any() and is_bos[:, 0].any():
        raise ValueError(f"decoder_input_ids: bos ({bos}) is padding and begins no row; pad with another id")
    return bool(begins.all())
