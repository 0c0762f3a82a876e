"""Answers on standard output: as they come, a line each, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from t5g2ref.commands.prompts import Prompts
from t5g2ref.generate.beam import Searched
from t5g2ref.generate.steps import Generated

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a text ends with while a character's bytes are not all there


@dataclass(frozen=True)
class Answer:
    """One answer: its new ids, what ended it included; the log-probability of each; a beam's score."""

    ids: list[int]
    log_probs: list[float]
    score: float | None = None


class Stream:
    """One answer as it comes: ids with a space behind each, or a tokenizer's text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    def take(self, token: int) -> None:
        """Show the next id, or what it adds to the text."""
        self._ids.append(token)
        if self._tokenizer is None:
            print(token, end=" ", flush=True)
        elif not (text := self._tokenizer.decode(self._ids)).endswith(UNFINISHED):
            self._show(text)

    def end(self) -> None:
        """Show what was held back, and end the line."""
        if self._tokenizer is not None:
            self._show(self._tokenizer.decode(self._ids))
        print()

    def _show(self, text: str) -> None:
        """Print what the text has more than what is shown."""
        print(text.removeprefix(self._shown), end="", flush=True)
        self._shown = text


def rows_of(found: Generated, host: Callable[[Any], Any]) -> list[list[Answer]]:
    """The one answer of each row."""
    lengths, log_probs = host(found.lengths), host(found.log_probs)
    new = host(found.ids)[:, -log_probs.shape[1] :]
    return [[_answer(*row)] for row in zip(new, log_probs, lengths, strict=True)]


def beams_of(found: Searched, beams: int) -> list[list[Answer]]:
    """The answers of each source, best first."""
    new = found.ids[:, -found.log_probs.shape[1] :]
    rows = [_answer(*row) for row in zip(new, found.log_probs, found.lengths, found.scores, strict=True)]
    return [rows[first : first + beams] for first in range(0, len(rows), beams)]


def show(prompts: Prompts, answers: list[list[Answer]], *, as_json: bool) -> None:
    """Print the best answer of each prompt, a line each; as JSON all of them, an object a prompt."""
    for text, own in zip(prompts.texts, answers, strict=True):
        if as_json:
            print(json.dumps({"prompt": text, "answers": [_object(one, prompts.tokenizer) for one in own]}))
        else:
            best = own[0].ids
            print(" ".join(map(str, best)) if prompts.tokenizer is None else prompts.tokenizer.decode(best))


def _answer(ids: Any, log_probs: Any, length: Any, score: Any = None) -> Answer:
    """One answer from its row of arrays, cut at its length."""
    last, value = int(length), None if score is None else float(score)
    return Answer([int(i) for i in ids[:last]], [float(x) for x in log_probs[:last]], value)


def _object(answer: Answer, tokenizer: Any) -> dict[str, Any]:
    """The answer for JSON, without what it has not."""
    text = {} if tokenizer is None else {"text": tokenizer.decode(answer.ids)}
    score = {} if answer.score is None else {"score": answer.score}
    return {**text, "ids": answer.ids, "log_probs": answer.log_probs, **score}
