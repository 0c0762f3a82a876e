"""What a peer's own `generate` is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from t5g2ref.config import Config

Array = np.ndarray[Any, Any]
GENERATE = "generate"
"""The lane, and how the names of its cases begin."""


@dataclass(frozen=True)
class Prompt:
    """One call of a peer's `generate`, without sampling.

    Args:
        input_ids, attention_mask: (B, S); pixel_values (I, C, side, side) float32.
        new: how many ids are made at most.
        start: (B, n) decoder ids to begin with; None for the peer's own beginning, which has to be bos alone.
        beams: how many are kept in each step, and returned; 1 is the likeliest id at each step.
        stop: ids that end a row. Behind them a row has pad alone.
    """

    input_ids: Array
    new: int
    attention_mask: Array | None = None
    pixel_values: Array | None = None
    start: Array | None = None
    beams: int = 1
    stop: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of an answer: every beam of every row."""
        return len(self.input_ids) * self.beams

    def begin(self, config: Config) -> Array:
        """(B, n): the decoder ids that an answer has to begin with."""
        return np.full((len(self.input_ids), 1), config.decoder.bos_token_id) if self.start is None else self.start

    def copied(self) -> Prompt:
        """The prompt with arrays of its own, for a peer to do with as it likes."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        own: dict[str, Any] = {name: v.copy() for name, v in given.items() if isinstance(v, np.ndarray)}
        return replace(self, **own)


@dataclass(frozen=True)
class Answer:
    """What a peer's `generate` gave. Rows are every beam of the first row, best first, then those of the next.

    Args:
        ids: (rows, n + L) with the start in front; L is at most the prompt's `new`.
        logits: (rows, L, V) from which each id was chosen, before anything is done to them; None where they are not to
            be had. Of beams, those along the row's own path.
        log_probs: (rows, L) of the ids, in nats, where there are no logits.
        scores: (rows,) of beams: mean log-probability of the new ids.
    """

    ids: Any
    logits: Any = None
    log_probs: Any = None
    scores: Any = None
