"""Settings of the processors, checked where they are made, and the order in which these are applied.

Rules hold in every way to generate; sampling narrows what they leave. The order is that of transformers'
`_get_logits_processor`: penalty, n-grams, words, least length; then temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from t5g2ref.config.fields import short
from t5g2ref.generate import processors
from t5g2ref.numerics import Array


def require(holds: bool, option: str, expected: str, found: object) -> None:
    """Raise ValueError with the option, what was expected and what was found, unless it holds."""
    if not holds:
        raise ValueError(f"{option}: expected {expected}, found {short(found)}")


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


LEAST, MOST = 1e-4, 1e4
FACTORS = f"a number from {LEAST:g} to {MOST:g}"


def is_factor(value: object) -> bool:
    """Whether logits can be divided and multiplied by it, and stay finite numbers."""
    return is_number(value) and LEAST <= value <= MOST  # type: ignore[operator]


def is_count(value: object, least: int) -> bool:
    """Whether it is an integer of at least that, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


@dataclass(frozen=True)
class Rules:
    """What is forbidden or made less likely, whichever way an id is chosen. The default changes nothing.

    Args:
        repetition_penalty: above 1 makes ids of the row's past less likely; 1 for none.
        no_repeat_ngram: no run of so many ids occurs twice in a row; 0 for no such rule.
        bad_words: runs of ids that do not occur, each of at least one id.
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """ValueError for a setting that has no meaning."""
        penalty = self.repetition_penalty
        require(is_factor(penalty), "repetition_penalty", FACTORS, penalty)
        require(is_count(self.no_repeat_ngram, 0), "no_repeat_ngram", "an integer of at least 0", self.no_repeat_ngram)
        object.__setattr__(self, "bad_words", tuple(_word(word) for word in self.bad_words))


@dataclass(frozen=True)
class Sampling:
    """How the distribution is narrowed before an id is drawn. The default draws from it as it is.

    Args:
        temperature: logits are divided by it.
        top_k: so many of the likeliest ids stay; 0 for all.
        top_p: the fewest of the likeliest ids stay whose probabilities reach it; 1 for all.
        min_p: ids stay that are at least so likely, relative to the likeliest; 0 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """ValueError for a setting that has no meaning."""
        t, p, share = self.temperature, self.top_p, self.min_p
        require(is_factor(t), "temperature", f"{FACTORS} (for the likeliest id use greedy)", t)
        require(is_count(self.top_k, 0), "top_k", "an integer of at least 0, 0 for all ids", self.top_k)
        require(is_number(p) and 0 < p <= 1, "top_p", "a number above 0, at most 1", p)
        require(is_number(share) and 0 <= share <= 1, "min_p", "a number from 0 to 1", share)
        for name, value in (("temperature", t), ("top_p", p), ("min_p", share)):
            object.__setattr__(self, name, float(value))  # a NumPy number would widen the logits


NO_RULES = Rules()
AS_IT_IS = Sampling()


def ruled(xp: Any, logits: Array, ids: Array, rules: Rules) -> Array:
    """Logits (B, V) under the rules, for rows whose decoder ids so far are (B, T)."""
    if rules.repetition_penalty != 1:
        logits = processors.repetition_penalty(xp, logits, ids, rules.repetition_penalty)
    if rules.no_repeat_ngram:
        logits = processors.no_repeat_ngram(xp, logits, ids, rules.no_repeat_ngram)
    if rules.bad_words:
        logits = processors.bad_words(xp, logits, ids, rules.bad_words)
    return logits


def narrowed(xp: Any, logits: Array, sampling: Sampling) -> Array:
    """Logits (B, V) with −∞ where no id may be drawn; the likeliest always may."""
    if sampling.temperature != 1:
        logits = processors.temperature(logits, sampling.temperature)
    if sampling.top_k:
        logits = processors.top_k(xp, logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = processors.top_p(xp, logits, sampling.top_p)
    if sampling.min_p:
        logits = processors.min_p(xp, logits, sampling.min_p)
    return logits


def _word(word: Any) -> tuple[int, ...]:
    """One of the bad words, as a tuple of ints."""
    one = tuple(word) if isinstance(word, list | tuple) else ()
    require(bool(one) and all(is_count(i, 0) for i in one), "bad_words", "runs of ids, each of at least one", word)
    return one
