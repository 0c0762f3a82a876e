"""Greedy generation where the backend makes many ids without the host: `one_step.whole_steps`."""

from __future__ import annotations

from typing import Any

import numpy as np

from t5g2ref.embedding import embed_scale
from t5g2ref.generate.options import Begun
from t5g2ref.generate.processors import chosen, log_softmax
from t5g2ref.generate.rules import NO_RULES
from t5g2ref.generate.steps import Generated, Tell, finite
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array
from t5g2ref.one_step import Chunk, whole_steps
from t5g2ref.rope import rope_tables

MANY, FEW = 32, 8  # ids between two looks of the host; few where somebody reads along


def at_once(model: T5Gemma2, begun: Begun, tell: Tell | None) -> Generated | None:
    """What `steps.generated` makes of the likeliest ids; None where the backend has no such way, or where rules, texts
    or a least length ask for the host at each step."""
    nx, config, ends = model.nx, model.config.decoder, begun.ends
    if begun.rules != NO_RULES or ends.strings or ends.least or model.weights.decoder is None:
        return None
    stack, table = model.weights.decoder, model.weights.encoder.text_model.embed_tokens
    ids, cache = begun.start.ids, begun.cache
    scale = embed_scale(nx, config.hidden_size)
    begin = whole_steps(nx, stack, table, config, len(ids), scale, model.config.eoi_token_index)
    if begin is None:
        return None
    if ids.shape[1] > 1:
        mask = None if begun.start.mask is None else begun.start.mask[:, :-1]
        cache = model.decode(ids[:, :-1], cache, mask)[1]
    steps, last, running = begin(cache, cache.length + ends.most), ids[:, -1], nx.xp.ones(len(ids), dtype=bool)
    chunks: list[Chunk] = []
    made = 0
    while made < ends.most and (not chunks or bool(running.any())):
        count = min(FEW if tell else MANY, ends.most - made)
        positions = nx.xp.arange(cache.length + made, cache.length + made + count)[None]
        chunk = steps.next(last, running, rope_tables(nx, config, positions), ends.ids, config.pad_token_id)
        _checked(model, chunk, made)
        for i in range(chunk.ids.shape[1] if tell else 0):
            tell(chunk.ids[:, i])  # type: ignore[misc]
        chunks.append(chunk)
        made, last, running = made + chunk.ids.shape[1], chunk.ids[:, -1], chunk.running
    return _joined(model, begun, chunks)


def _checked(model: T5Gemma2, chunk: Chunk, made: int) -> None:
    """ValueError for NaN or +∞ among the logits, with its step and row."""
    for step in range(0 if chunk.sound else chunk.logits.shape[1]):
        finite(model.nx, chunk.logits[:, step], made + step)


def _joined(model: T5Gemma2, begun: Begun, chunks: list[Chunk]) -> Generated:
    nx, xp = model.nx, model.nx.xp
    new = xp.concatenate([chunk.ids for chunk in chunks], axis=1)
    ended = np.isin(nx.backend.host(new), begun.ends.ids)
    before: np.ndarray[Any, Any] = np.cumsum(ended, axis=1) - ended  # how often a row has ended before each id
    running = xp.asarray(before == 0)
    log_probs, at = [], 0
    for chunk in chunks:
        here = running[:, at : at + chunk.ids.shape[1]]
        log_probs.append(xp.where(here, _log_probs(model, chunk), 0.0))
        at += chunk.ids.shape[1]
    logits = xp.concatenate([chunk.logits for chunk in chunks], axis=1)
    ids = xp.concatenate([begun.start.ids, new], axis=1)
    return Generated(ids, logits, xp.concatenate(log_probs, axis=1), running.sum(axis=1))


def _log_probs(model: T5Gemma2, chunk: Chunk) -> Array:
    """(B, T) float64, of each id."""
    batch, count, size = chunk.logits.shape
    rows = model.nx.wide(chunk.logits).reshape(-1, size)
    found = chosen(model.nx.xp, log_softmax(model.nx.xp, rows), chunk.ids.reshape(-1))
    return found.reshape(batch, count)
