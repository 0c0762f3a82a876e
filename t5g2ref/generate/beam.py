"""Beam search with the cache, both halves of which are reordered to the answers that grow on.

A source's rows leave the batch once its search is done. So the batch shrinks, and the encoder's half has to follow too.
`hypotheses.py` says which answers are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from t5g2ref.cache import Cache
from t5g2ref.generate.hypotheses import Beam, Row, Search, advanced
from t5g2ref.generate.options import Begun, Options, begin
from t5g2ref.generate.processors import log_softmax
from t5g2ref.generate.steps import finite, restricted, sound
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array, Numerics

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Searched:
    """What a search found: for each source its `beams` answers, best first. R = sources · beams.

    Args:
        ids: (R, n + L) with the start in front and pad behind an answer's end, on the host.
        scores: (R,) float64, log-probability over length to the power of the penalty, in nats.
        log_probs: (R, L) float64, of each new id after processing; 0 behind an answer's end.
        logits: (R, L, V) of each choice along the answer's own path, as the model gave them; on its backend.
        lengths: (R,) integers, the new ids of each answer, what ended it included.
    """

    ids: Host
    scores: Host
    log_probs: Host
    logits: Array
    lengths: Host


def beam_search(model: T5Gemma2, input_ids: Any, search: Search, **options: Unpack[Options]) -> Searched:
    """The likeliest answers that a search with `search.beams` growing ones finds.

    Rules act on log-probabilities here, and nothing is normalised behind them, as in transformers.

    Args:
        input_ids, options: as for `greedy`; input_ids are None beside inputs_embeds.

    Raises:
        ValueError: as `greedy`, and where the rules leave a source fewer answers than beams.
    """
    with model.nx.scope():
        begun = begin(model, input_ids, options)
        rows, steps = _searched(model, begun, search)
        for n, row in enumerate(rows):
            if len(row.kept) < search.beams:
                left = f"source {n} has {len(row.kept)} answers that the rules allow"
                raise ValueError(f"beams: {left}, expected {search.beams}; give fewer beams, or fewer rules")
        best = [beam for row in rows for beam in row.kept]
        start = np.repeat(model.nx.backend.host(begun.start.ids), search.beams, axis=0)
        return _joined(model, start, best, steps, search.length_penalty)


def _searched(model: T5Gemma2, begun: Begun, search: Search) -> tuple[list[Row], list[Array]]:
    """Every source's row at its end, and the logits (rows, V) of every step."""
    nx, ends, start = model.nx, begun.ends, model.nx.backend.host(begun.start.ids)
    rows, cache, steps = [Row() for _ in start], begun.cache, []
    new, mask = begun.start.ids, begun.start.mask
    for step in range(ends.most):
        hidden, cache = model.decode(new, cache, mask)
        steps.append(model.logits(hidden[:, -1:])[:, -1])
        ids = np.array([(*s, *beam.ids) for s, row in zip(start, rows, strict=True) for beam in _growing(row)])
        free = log_softmax(nx.xp, finite(nx, steps[-1], step))
        scores = restricted(nx, free, nx.xp.asarray(ids), begun, step)
        if scores is not free:
            sound(nx, scores, step, "the logits under the rules")
        likeliest = _likeliest(nx, scores, search.width(len(ends.ids)))
        rows = list(_stepped(rows, likeliest, begun, search))
        growing = [beam for row in rows for beam in _growing(row)]
        if not growing:
            break
        new, mask = nx.xp.asarray(np.array([beam.ids[-1:] for beam in growing])), None
        cache = _followed(nx, cache, growing)
    return rows, steps


def _growing(row: Row) -> tuple[Beam, ...]:
    """What of a row is in the batch."""
    return () if row.done else row.growing


def _followed(nx: Numerics, cache: Cache, growing: Sequence[Beam]) -> Cache:
    """The cache with a row for each growing answer: the one that it was continued from."""
    return cache.reordered(nx.xp.asarray(np.array([beam.sources[-1] for beam in growing])))


def _likeliest(nx: Numerics, scores: Array, width: int) -> tuple[Host, Host]:
    """(R, width) log-probabilities and ids, best first, of scores (R, V); the rest stays on the device."""
    order = nx.xp.argsort(-scores, axis=1, kind="stable")[:, :width]
    best = nx.xp.take_along_axis(scores, order, axis=1)
    return nx.backend.host(best), nx.backend.host(order)


def _stepped(rows: list[Row], likeliest: tuple[Host, Host], begun: Begun, search: Search) -> Iterator[Row]:
    """Each row with what its growing answers are continued by; they stand in the batch in the rows' order."""
    ends, first = begun.ends, 0
    width = search.width(len(ends.ids))
    for row in rows:
        if row.done:
            yield row
            continue
        last = first + len(row.growing)
        continued = _continued(row.growing, first, *(part[first:last] for part in likeliest))
        yield advanced(row, continued[:width], lambda beam: ends.end(beam.ids), search, ends.most)
        first = last


def _continued(growing: Sequence[Beam], first: int, log_probs: Host, tokens: Host) -> list[Beam]:
    """All continuations of growing answers that are possible, best first; `first` is their first row in the batch."""
    totals = np.array([beam.total for beam in growing])[:, None] + log_probs
    order = np.argsort(-totals, axis=None, kind="stable")
    places = [divmod(int(i), totals.shape[1]) for i in order[np.isfinite(totals.reshape(-1)[order])]]
    return [growing[r].extended(int(tokens[r, k]), float(log_probs[r, k]), first + r) for r, k in places]


def _joined(model: T5Gemma2, start: Host, best: Sequence[Beam], steps: list[Array], penalty: float) -> Searched:
    """The answers side by side, padded to the longest."""
    xp, longest = model.nx.xp, max(len(beam.ids) for beam in best)
    pad = model.config.decoder.pad_token_id
    ids = np.array([beam.ids + (pad,) * (longest - len(beam.ids)) for beam in best])
    log_probs = np.array([beam.log_probs + (0.0,) * (longest - len(beam.ids)) for beam in best])
    sources = np.array([beam.sources + (0,) * (longest - len(beam.ids)) for beam in best])
    along = xp.stack([steps[t][xp.asarray(sources[:, t])] for t in range(longest)], axis=1)
    scores = np.array([beam.score(penalty) for beam in best])
    lengths = np.array([len(beam.ids) for beam in best])
    return Searched(np.concatenate([start, ids], axis=1), scores, log_probs, along, lengths)
