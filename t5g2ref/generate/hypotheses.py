"""The bookkeeping of a beam search, on the host: which answers of a source still grow, and which are kept.

At each step the 2 · beams likeliest continuations of a row are looked at: (1 + ends) · beams where several ids end it.
Those of the first `beams` that end are kept, by score. The first `beams` that do not end grow on.

Source of ranks and stopping: transformers, `GenerationMixin._beam_search`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from t5g2ref.generate.rules import is_count, is_number, require

MOST_BEAMS = 1024
LARGEST = 20  # of the length penalty; a length to a larger power may overflow


@dataclass(frozen=True)
class Search:
    """How a beam search ranks answers, and when it ends.

    Args:
        beams: so many answers grow, and are given for each source; at least 2.
        length_penalty: an answer's score is its log-probability over its new ids' number to this power. 1 is the mean;
            above 0 favours long answers, for log-probabilities are negative.
        early_stopping: True ends a source with its first `beams` answers. False ends it once its best growing answer,
            scored at its present length, is no better than the worst kept. "never" scores it at the length at which it
            could be best: the most ids where the penalty is above 0.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        """ValueError for a setting that has no meaning."""
        require(is_count(self.beams, 2), "beams", "an integer of at least 2 (for one use greedy)", self.beams)
        require(self.beams <= MOST_BEAMS, "beams", f"at most {MOST_BEAMS}", self.beams)
        penalty = self.length_penalty
        near = is_number(penalty) and abs(penalty) <= LARGEST
        require(near, "length_penalty", f"a number from -{LARGEST} to {LARGEST}", penalty)
        known = isinstance(self.early_stopping, bool) or self.early_stopping == "never"
        require(known, "early_stopping", "True, False or 'never'", self.early_stopping)

    def width(self, ends: int) -> int:
        """Continuations that are looked at, where so many ids end a row."""
        return max(2, 1 + ends) * self.beams


@dataclass(frozen=True)
class Beam:
    """An answer: its new ids; the log-probability of each; of each step, the row of logits it was chosen from."""

    ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    sources: tuple[int, ...] = ()
    total: float = 0.0

    def extended(self, token: int, log_prob: float, source: int) -> Beam:
        """The answer with one id more."""
        ids, log_probs = (*self.ids, token), (*self.log_probs, log_prob)
        return Beam(ids, log_probs, (*self.sources, source), self.total + log_prob)

    def score(self, penalty: float, length: int | None = None) -> float:
        """The log-probability over length to the power `penalty`, of its own length or of another."""
        return float(self.total / (length or len(self.ids)) ** penalty)


@dataclass(frozen=True)
class Row:
    """One source's search: `growing` and `kept` answers, each best first; whether it is done."""

    growing: tuple[Beam, ...] = (Beam(),)
    kept: tuple[Beam, ...] = ()
    done: bool = False


def advanced(row: Row, continued: Iterable[Beam], ends: Callable[[Beam], bool], search: Search, most: int) -> Row:
    """The row after a step.

    Args:
        continued: the likeliest continuations of its growing answers, best first, no more than `Search.width`.
        ends: whether an answer has ended.
        most: new ids that an answer has at most.
    """
    looked_at = [(beam, ends(beam)) for beam in continued]
    ended = [beam for beam, over in looked_at[: search.beams] if over]
    growing = tuple(islice((beam for beam, over in looked_at if not over), search.beams))
    ranked = sorted([*row.kept, *ended], key=lambda beam: -beam.score(search.length_penalty))  # of equals the earlier
    row = replace(row, growing=growing, kept=tuple(ranked[: search.beams]))
    return replace(row, done=not _may_improve(row, search, most))


def _may_improve(row: Row, search: Search, most: int) -> bool:
    """Whether what grows could still change what is kept."""
    if not row.growing:
        return False
    if len(row.kept) < search.beams:
        return True
    if search.early_stopping is True:
        return False
    best, penalty = row.growing[0], search.length_penalty
    length = most if search.early_stopping == "never" and penalty > 0 else len(best.ids)
    return best.score(penalty, length) > row.kept[-1].score(penalty)
