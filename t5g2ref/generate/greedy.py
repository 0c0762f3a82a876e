"""Greedy generation with the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from t5g2ref import inputs
from t5g2ref.cache import Cache
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array


@dataclass(frozen=True)
class Generated:
    """ids (B, T) with the start tokens in front and pad behind a row's end; logits (B, T_new, V) of the choices."""

    ids: Array
    logits: Array


def greedy(
    model: T5Gemma2,
    input_ids: Any,
    *,
    max_new_tokens: int = 64,
    attention_mask: Any = None,
    pixel_values: Any = None,
    decoder_input_ids: Any = None,
    stop: Sequence[int] | None = None,
    on_token: Callable[[Array], None] | None = None,
) -> Generated:
    """The likeliest token at each step, until every row has an end-of-sequence token or the count is reached.

    Args:
        input_ids, attention_mask, pixel_values: as for `T5Gemma2.encode`.
        max_new_tokens: at least 1.
        decoder_input_ids: (B, n) start of the answer; bos is put in front unless the rows begin with it.
        stop: ids that end a row; the configuration's eos ids when None, none at all when empty.
        on_token: called with the new ids (B,) after each step (for streaming).

    Returns:
        the ids, start included, and the logits that each new id was chosen from; arrays of the model's backend.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, found {max_new_tokens}")
    ends = tuple(model.config.decoder.eos_token_id if stop is None else stop)
    size = model.config.decoder.vocab_size
    if wrong := [end for end in ends if not 0 <= end < size]:
        raise ValueError(f"stop: ids must lie in [0, {size}), found {wrong[0]}, which no row would ever have")
    with model.nx.scope():
        encoded = model.encode(input_ids, attention_mask, None, pixel_values)
        start = start_ids(model, decoder_input_ids, encoded.hidden.shape[0])
        return _steps(model, model.start(encoded), start, max_new_tokens, ends, on_token)


def _steps(
    model: T5Gemma2,
    cache: Cache,
    start: Array,
    count: int,
    ends: tuple[int, ...],
    on_token: Callable[[Array], None] | None,
) -> Generated:
    """`count` steps from the ids `start` (B, n), or as many as it takes until each row has one of `ends`."""
    xp, pad = model.nx.xp, model.config.decoder.pad_token_id
    new = ids = start
    running = xp.ones(ids.shape[0], dtype=bool)
    logits = []
    for _ in range(count):
        hidden, cache = model.decode(new, cache)
        logits.append(model.logits(hidden[:, -1:]))
        likeliest = model.nx.wide(logits[-1][:, -1]).argmax(axis=-1)  # not every library reduces half types
        token = xp.where(running, likeliest, pad)
        new = token[:, None]
        ids = xp.concatenate([ids, new], axis=1)
        if on_token is not None:
            on_token(token)
        for end in ends:
            running = running & (token != end)
        if ends and not bool(running.any()):  # a device is waited for here, so not where no row can end
            break
    return Generated(ids, xp.concatenate(logits, axis=1))


def start_ids(model: T5Gemma2, given: Any, batch: int) -> Array:
    """(B, n) decoder ids to begin with: bos alone, or the given ones with bos in front where it is not yet."""
    xp, bos = model.nx.xp, model.config.decoder.bos_token_id
    first = xp.full((batch, 1), bos)
    if given is None:
        return first
    given = inputs.array(model.nx, "decoder_input_ids", given)
    if given.ndim != 2 or given.shape[0] != batch:
        raise ValueError(f"decoder_input_ids: expected ({batch}, length), found shape {tuple(given.shape)}")
    begins = model.nx.backend.host(given[:, :1] == bos)
    if begins.any() and not begins.all():
        raise ValueError(f"decoder_input_ids: some rows begin with bos ({bos}) and some do not; begin all or none")
    return given if begins.size and begins.all() else xp.concatenate([first, given], axis=1)
