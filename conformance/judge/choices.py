"""What a peer's `generate` made of its logits: the ids it chose, where rows end, the beams it kept and their scores.

An id is held against the peer's own logits bit for bit. Against the truth it is held where the truth is certain: where
its margin is more than twice what a passing peer's error can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.cases.forced import ended
from conformance.cases.prompt import Answer, Prompt
from conformance.measure import limits
from conformance.measure.finding import Finding
from conformance.measure.logits import log_softmax
from conformance.measure.words import in_words
from conformance.oracle.beams import Searched
from t5g2ref.config import Config
from t5g2ref.dtypes import unit_roundoff

Array = np.ndarray[Any, Any]
JUDGED = IDS, STOP, CHOICE, BEAMS, SCORES = tuple(f"generate.{n}" for n in ("ids", "stop", "choice", "beams", "scores"))
"""Stand where a tap does: the ids' form, where rows end, each choice, the beams, and their scores."""


@dataclass(frozen=True)
class Along:
    """Our own logits along an answer's ids, (R, L, V) float64 each: the truth, and the controls. They are needed where
    the peer shows no logits, and of beams.

    `search` is the truth's own beam search; None where the prompt asks for no beams, or a row may end.
    """

    truth: Array
    controls: list[Array]
    search: Searched | None = None

    @property
    def budget(self) -> float:
        """How far a log-probability of a passing peer may be from the truth's, in nats."""
        return 2 * limits.LOGIT_ERRORS * max(float(np.abs(c - self.truth).max(initial=0.0)) for c in self.controls)


def malformed(prompt: Prompt, answer: Answer, config: Config) -> str:
    """What is wrong with an answer's form, in words; "" where it can be judged. Arrays are the host's."""
    ids, start, size = answer.ids, prompt.begin(config), config.decoder.vocab_size
    if ids.ndim != 2 or len(ids) != prompt.rows:
        return f"ids: expected {prompt.rows} rows (rows × beams), found shape {tuple(ids.shape)}"
    if ids.dtype.kind not in "iu":
        return f"ids: expected integers, found {ids.dtype}"
    n, length = start.shape[1], ids.shape[1]
    if not n < length <= n + prompt.new:
        return f"ids: expected a start of {n} and 1 to {prompt.new} new ones, found {length} a row"
    if ((ids < 0) | (ids >= size)).any():
        return f"ids: expected ids from 0 to {size - 1}, found {int(ids.min())} to {int(ids.max())}"
    if (wrong := ids[:, :n] != np.repeat(start, prompt.beams, axis=0)).any():
        row, at = (int(i) for i in np.argwhere(wrong)[0])
        return f"row {row} begins with id {ids[row, at]} at {at}, expected {start[row // prompt.beams, at]}"
    for name, shape in (
        ("logits", (*ids[:, n:].shape, size)),
        ("log_probs", ids[:, n:].shape),
        ("scores", ids.shape[:1]),
    ):
        value = getattr(answer, name)
        if value is not None and (value.shape != shape or value.dtype.kind != "f"):
            return f"{name}: expected float {shape}, found {value.dtype} {tuple(value.shape)}"
    return ""


@dataclass(frozen=True)
class Choices:
    """An answer whose form is right, beside what it has to be.

    Args:
        along: ours along its ids; None where they are not needed.
        dtype: the peer's.
    """

    prompt: Prompt
    answer: Answer
    along: Along | None
    config: Config
    dtype: str

    def findings(self, call: int) -> list[Finding]:
        """A finding for each thing that is judged; `call` is the number of the answer's first call in its case."""
        judged: dict[str, Callable[[], str]] = {STOP: self._stops, CHOICE: self._choices}
        if self.prompt.beams > 1:
            judged = {STOP: self._stops, BEAMS: self._beams, SCORES: self._scores}
        found = [Finding(IDS, call, "pass", tokens=int(self.answer.ids.size))]
        for tap, look in judged.items():
            detail = look()
            found.append(Finding(tap, call, "exact" if detail else "pass", detail=detail))
        return found

    @property
    def _new(self) -> Array:
        """(R, L): the ids behind the start."""
        ids: Array = self.answer.ids[:, self.prompt.begin(self.config).shape[1] :]
        return ids

    @property
    def _running(self) -> Array:
        """bool (R, L): whether the row had not ended when the id was chosen."""
        n = self.prompt.begin(self.config).shape[1]
        return ~ended(self.answer.ids, n, self.prompt.stop)[:, n - 1 : -1]

    def _stops(self) -> str:
        """A row that has ended has pad alone, and none stops before it has ended or has all its ids."""
        new, running, pad = self._new, self._running, self.config.decoder.pad_token_id
        if (wrong := ~running & (new != pad)).any():
            row, at = (int(i) for i in np.argwhere(wrong)[0])
            return f"row {row} has ended and goes on: id {new[row, at]} at new position {at}, expected pad ({pad})"
        unfinished = running[:, -1] & ~np.isin(new[:, -1], self.prompt.stop)
        if new.shape[1] < self.prompt.new and unfinished.any():
            row = int(np.argmax(unfinished))
            return f"row {row} stops after {new.shape[1]} of {self.prompt.new} new ids, and none of them ends it"
        return ""

    def _choices(self) -> str:
        """Greedy: each id is the likeliest of the peer's own logits. Of a peer that shows none, of the truth's where
        that is certain; of the others the logits' own judgement says so."""
        new = self._new
        for row, at in np.argwhere(self._running).tolist():
            token, where = int(new[row, at]), f"row {row}, new position {at}: id {new[row, at]}"
            if self.answer.logits is not None:
                logits = self.answer.logits[row, at]
                if not logits[token] >= logits.max():  # a NaN is no choice
                    return f"{where}, but its own logits are largest at {int(logits.argmax())}"
            elif self.along is not None:
                truth = self.along.truth[row, at]
                best = int(truth.argmax())
                if (gap := truth[best] - truth[token]) > self.along.budget:
                    certain = f"by {in_words(float(gap))}, where {in_words(self.along.budget)} is certain"
                    return f"{where}, but the truth's is {best} {certain}"
        return ""

    def _beams(self) -> str:
        """The beams of a row are unlike, in order, and those of the truth's own search where that is certain."""
        beams, ids, scores = self.prompt.beams, self.answer.ids, self.answer.scores
        for row in range(0, self.prompt.rows, beams):
            if len({tuple(of) for of in ids[row : row + beams].tolist()}) < beams:
                return f"row {row // beams}: two of its beams are the same ids"
            own = np.zeros(beams) if scores is None else np.asarray(scores[row : row + beams], np.float64)
            if not (np.diff(own) <= 0).all():
                said = ", ".join(in_words(float(score)) for score in own)
                return f"row {row // beams}: expected its beams best first, found scores {said}"
        return next(self._unlike(), "")

    def _unlike(self) -> Iterator[str]:
        """Rows whose beams are not the truth's, though each of its choices is certain."""
        if self.along is None or self.along.search is None:
            return
        search, beams = self.along.search, self.prompt.beams
        budget = self.along.budget * self._new.shape[1]  # a sum of so many log-probabilities
        for i, margin in enumerate(search.margin):
            expected, found = (x[i * beams : (i + 1) * beams] for x in (search.ids, self.answer.ids))
            if margin > budget and (wrong := (expected != found).any(axis=1)).any():
                at = int(np.argmax(wrong))
                said = [" ".join(map(str, x[at].tolist())) for x in (expected, found)]
                gap = f"each choice is certain by {in_words(float(margin))} nats or more"
                yield f"row {i}, beam {at}: expected {said[0]}, found {said[1]}; {gap}"

    def _scores(self) -> str:
        """A beam's score is the mean log-probability of its new ids: by its own logits, or else by the truth's."""
        answer = self.answer
        if answer.scores is None or self.along is None:
            return ""
        own = answer.logits is not None
        logits = np.asarray(answer.logits, np.float64) if own else self.along.truth
        logs = log_softmax(np, logits.reshape(-1, logits.shape[-1])).reshape(logits.shape)
        picked = np.take_along_axis(logs, self._new[..., None].astype(np.int64), -1)[..., 0]
        wanted = np.where(self._running, picked, 0.0).sum(axis=1) / self._running.sum(axis=1)
        size = max(float(np.abs(logits).max()), float(np.abs(picked).max()))
        most = limits.LIMITS["cumulative"] * unit_roundoff(self.dtype) * size if own else self.along.budget
        found = np.asarray(answer.scores, np.float64)
        if (right := np.abs(found - wanted) <= most).all():
            return ""
        row = int(np.argmin(right))
        mean = f"expected {in_words(float(wanted[row]), 6)}, the mean log-probability of its new ids"
        return f"row {row}: score {in_words(float(found[row]), 6)}, {mean}"
