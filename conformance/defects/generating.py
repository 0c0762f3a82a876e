"""Faults of a peer's own `generate`: D78, and what is wrongly made of right logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from conformance.cases.case import Run
from conformance.cases.forced import ended, images_of
from conformance.cases.prompt import Answer, Prompt
from conformance.defects.injection import HEALTHY, Fault, Setting, inputs
from t5g2ref.config import Config

Change = Callable[[Prompt, Answer, Config], Answer]


def _tiled(run: Run, setting: Setting) -> Run:
    """All pictures once for each beam, where each row's should stand together. A row's beams all go on from its first
    one, and so with that one's pictures."""
    if not setting.case.prompts:
        return run
    prompt = next(p for other, p in zip(setting.case.runs, setting.case.prompts, strict=True) if other is run)
    if prompt.pixel_values is None or prompt.beams < 2:
        return run
    tiled = np.concatenate([prompt.pixel_values] * prompt.beams)
    firsts, at = [], 0
    for count in images_of(prompt.input_ids, setting.config):
        firsts += [tiled[at : at + count]] * prompt.beams
        at += count * prompt.beams
    return replace(run, pixel_values=np.concatenate(firsts))


def _goes_on(prompt: Prompt, answer: Answer, config: Config) -> Answer:
    """Behind a row's end its last id stands again, where pad should."""
    ids, start = answer.ids.copy(), prompt.begin(config).shape[1]
    over = ended(ids, start, prompt.stop)
    for at in range(start + 1, ids.shape[1]):
        ids[:, at] = np.where(over[:, at - 1], ids[:, at - 1], ids[:, at])
    return replace(answer, ids=ids)


def _shortened(_: Prompt, answer: Answer, __: Config) -> Answer:
    """The last id is not made."""
    logits = None if answer.logits is None else answer.logits[:, :-1]
    return replace(answer, ids=answer.ids[:, :-1], logits=logits)


def _second_best(_: Prompt, answer: Answer, __: Config) -> Answer:
    """The last id is the second likeliest one."""
    ids = answer.ids.copy()
    ids[:, -1] = np.argsort(answer.logits[:, -1], axis=-1)[:, -2]
    return replace(answer, ids=ids)


def _from_pad(_: Prompt, answer: Answer, config: Config) -> Answer:
    """The answer begins with pad."""
    ids = answer.ids.copy()
    ids[:, 0] = config.decoder.pad_token_id
    return replace(answer, ids=ids)


def _worst_first(prompt: Prompt, answer: Answer, _: Config) -> Answer:
    """The beams of a row stand in the other order."""
    order = np.arange(prompt.rows).reshape(-1, prompt.beams)[:, ::-1].reshape(-1)
    return Answer(answer.ids[order], answer.logits[order], scores=answer.scores[order])


def _summed(prompt: Prompt, answer: Answer, config: Config) -> Answer:
    """A beam's score is the sum of its log-probabilities."""
    return replace(answer, scores=answer.scores * (answer.ids.shape[1] - prompt.begin(config).shape[1]))


def _of_logits(id_: str, title: str, case: str, tap: str, change: Change) -> Fault:
    """A fault in what is made of right logits."""
    return Fault(id_, title, case, tap, HEALTHY, status="exact", answered=change)


FAULTS = [
    Fault(
        "D78",
        "beams of a row get the pictures of all rows in turn",
        "generate-images",
        "logits",
        inputs(_tiled),
    ),
    Fault("X90", "a beam goes on with another one's cache", "generate-beams", "logits", HEALTHY, call=2, stays=True),
    _of_logits("X91", "a row that has ended goes on", "generate-stop", "generate.stop", _goes_on),
    _of_logits("X92", "the last id is not made", "generate", "generate.stop", _shortened),
    _of_logits("X93", "the last id is the second likeliest", "generate", "generate.choice", _second_best),
    _of_logits("X94", "an answer begins with pad", "generate", "generate.ids", _from_pad),
    _of_logits("X95", "a row's beams stand worst first", "generate-beams", "generate.beams", _worst_first),
    _of_logits("X96", "a beam's score is a sum", "generate-beams", "generate.scores", _summed),
]
