"""One id a step and row, with the cache: the loop that greedy and sampled generation share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from t5g2ref.generate.options import Begun
from t5g2ref.generate.processors import chosen, forbid, log_softmax
from t5g2ref.generate.rules import ruled
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array, Numerics

Tell = Callable[[Array], None]
"""Called with the new ids (B,) after each step, for streaming."""
NARROWED = "the logits that sampling narrowed"


@dataclass(frozen=True)
class Generated:
    """What was generated; arrays of the model's backend.

    Args:
        ids: (B, n + L) with the start in front and pad behind a row's end.
        logits: (B, L, V) of each choice, as the model gave them.
        log_probs: (B, L) float64, of each new id after processing, in nats; 0 behind a row's end.
        lengths: (B,) integers, the new ids of each row, what ended it included.
    """

    ids: Array
    logits: Array
    log_probs: Array
    lengths: Array


@dataclass(frozen=True)
class Way:
    """How an id is chosen: narrow (B, V) → (B, V) logits, then pick (B, V) → (B,) ids."""

    narrow: Callable[[Array], Array]
    pick: Callable[[Array], Array]


def generated(model: T5Gemma2, begun: Begun, way: Way, tell: Tell | None) -> Generated:
    """So many steps as the ends allow, or as it takes until each row has ended."""
    xp, pad, ends = model.nx.xp, model.config.decoder.pad_token_id, begun.ends
    cache, new, mask, ids = begun.cache, begun.start.ids, begun.start.mask, begun.start.ids
    began, running = ids.shape[1], xp.ones(ids.shape[0], dtype=bool)
    logits, log_probs, lengths = [], [], xp.zeros(ids.shape[0], dtype=int)
    for step in range(ends.most):
        hidden, cache = model.decode(new, cache, mask)
        logits.append(model.logits(hidden[:, -1:]))
        scores = allowed(model.nx, logits[-1][:, -1], ids, begun, step, running)
        scores, wide = way.narrow(scores), scores
        if scores is not wide:
            sound(model.nx, scores, step, NARROWED)
        token = xp.where(running, way.pick(scores), pad)
        log_probs.append(xp.where(running, chosen(xp, log_softmax(xp, scores), token), 0.0))
        new, mask, lengths = token[:, None], None, lengths + running
        ids = xp.concatenate([ids, new], axis=1)
        if tell is not None:
            tell(token)
        if ends.may_come:
            running = running & ~ends.ended(model.nx, ids[:, began:])
            if not bool(running.any()):  # a device is waited for here, so not where no row can end
                break
    return Generated(ids, xp.concatenate(logits, axis=1), xp.stack(log_probs, axis=1), lengths)


def allowed(nx: Numerics, raw: Array, ids: Array, begun: Begun, step: int, running: Array) -> Array:
    """A step's logits (B, V), wide, under rules and ends for the rows' decoder ids (B, T).

    A row that is not running keeps its own. ValueError for NaN, for +∞, and where no id is left in a row.
    """
    scores = finite(nx, raw, step)
    done = restricted(nx, scores, ids, begun, step)
    if done is scores:
        return scores
    sound(nx, done, step, "the logits under the rules")
    done = nx.xp.where(running[:, None], done, scores)
    none = nx.backend.host((done == -nx.xp.inf).all(axis=1))
    if none.any():
        row, rules = int(none.argmax()), "rules, stop ids and min_new_tokens"
        raise ValueError(f"logits: {rules} forbid every id in row {row} at step {step}; expected one that is allowed")
    return done


def restricted(nx: Numerics, scores: Array, ids: Array, begun: Begun, step: int) -> Array:
    """Scores (B, V) under the rules, and without the ids that end a row before its least length."""
    ends, scores = begun.ends, ruled(nx.xp, scores, ids, begun.rules)
    return forbid(nx.xp, scores, ends.ids) if ends.ids and step < ends.least else scores


def finite(nx: Numerics, raw: Array, step: int) -> Array:
    """Logits (B, V), wide. ValueError for NaN or +∞, before any id is chosen: the largest would be a wrong one."""
    return sound(nx, nx.wide(raw), step, "logits")  # not every library reduces half types


def sound(nx: Numerics, logits: Array, step: int, what: str) -> Array:
    """The logits (B, V). ValueError for NaN or +∞; −∞ forbids an id."""
    wrong = nx.backend.host(~(logits < nx.xp.inf).all(axis=1))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{what}: found NaN or infinity in row {row} at step {step}, expected finite numbers; look for one in the "
            "weights, or give a wider dtype"
        )
    return logits
