"""Greedy and sampled generation where the backend makes many ids without the host: `one_step.whole_steps`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from t5g2ref import inputs
from t5g2ref.backend.whole import Chunk
from t5g2ref.embedding import embed_scale
from t5g2ref.generate.options import Begun
from t5g2ref.generate.processors import chosen, log_softmax
from t5g2ref.generate.rules import NO_RULES, Sampling, narrowed
from t5g2ref.generate.steps import NARROWED, Generated, Tell, finite, sound
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array
from t5g2ref.one_step import whole_steps
from t5g2ref.rope import rope_tables
from t5g2ref.rope_types import by_length

MANY, FEW = 32, 8  # ids between two looks of the host; few where somebody reads along


@dataclass(frozen=True)
class Draws:
    """Ids that are drawn: how, and a generator of B numbers a step."""

    sampling: Sampling
    generator: np.random.Generator

    def ahead(self, steps: int, rows: int) -> np.ndarray[Any, Any]:
        """(steps, B) float64: the numbers that come next. The generator stays where it is."""
        bits = self.generator.bit_generator
        before = bits.state
        try:
            return self.generator.random((steps, rows))
        finally:
            bits.state = before

    def made(self, rows: int) -> None:
        """A step was made: the generator goes on behind its numbers."""
        self.generator.random(rows)


def at_once(model: T5Gemma2, begun: Begun, tell: Tell | None, draws: Draws | None = None) -> Generated | None:
    """What `steps.generated` makes of the likeliest ids, or of drawn ones. None where the backend has no such way,
    where rules, texts or a least length ask for the host at each step, and where RoPE's angles change with the length.

    Sums in another order than the definition's may draw another id where a number lies within some 1e-16 of a bound,
    or within some 1e-7 of min-p's, which is in float32. The generator is behind the numbers of the steps that were
    made, also while `tell` is called and where it raises.
    """
    nx, config, ends = model.nx, model.config.decoder, begun.ends
    if begun.rules != NO_RULES or ends.strings or ends.least or model.weights.decoder is None:
        return None
    if any(by_length(config.rope_parameters[kind]) for kind in config.layer_types):
        return None
    stack, table = model.weights.decoder, model.weights.encoder.text_model.embed_tokens
    ids, cache = begun.start.ids, begun.cache
    scale = embed_scale(nx, config.hidden_size)
    sampling = None if draws is None else draws.sampling
    begin = whole_steps(nx, stack, table, config, len(ids), scale, model.config.eoi_token_index, sampling)
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
        first, shape = cache.length + made, (1, count)
        positions = inputs.positions(nx, "decoder_position_ids", None, shape, first, config.max_position_embeddings)
        uniform = None if draws is None else nx.xp.asarray(draws.ahead(count, len(ids)))
        chunk = steps.next(last, running, rope_tables(nx, config, positions), ends.ids, config.pad_token_id, uniform)
        for i in range(chunk.ids.shape[1]):
            if not chunk.sound:
                _check(model, chunk.logits[:, i], made + i, sampling)
            if draws is not None:
                draws.made(len(ids))
            if tell is not None:
                tell(chunk.ids[:, i])
        chunks.append(chunk)
        made, last, running = made + chunk.ids.shape[1], chunk.ids[:, -1], chunk.running
    return _joined(model, begun, chunks)


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


def _check(model: T5Gemma2, logits: Array, step: int, sampling: Sampling | None) -> None:
    """The definition's errors for a step's logits (B, V)."""
    wide = finite(model.nx, logits, step)
    if sampling is not None:
        sound(model.nx, narrowed(model.nx.xp, wide, sampling), step, NARROWED)


def _log_probs(model: T5Gemma2, chunk: Chunk) -> Array:
    """(B, T) float64, of each id."""
    if chunk.log_probs is not None:
        return chunk.log_probs
    nx, xp = model.nx, model.nx.xp
    each = range(chunk.ids.shape[1])  # one by one: a float64 copy of many would be large
    found = [chosen(xp, log_softmax(xp, nx.wide(chunk.logits[:, i])), chunk.ids[:, i]) for i in each]
    return xp.stack(found, axis=1)
