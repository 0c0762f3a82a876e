"""Judges a peer's own `generate`: each step's logits along the peer's own ids, every choice, where rows end, and beams.

The answer's ids make a run that truth and controls are forced along, so a first wrong choice does not spoil what comes
behind it. What the peer showed there is judged as a black box's logits are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from conformance.activations import Dump
from conformance.arrays import on_device, to_host
from conformance.cases.case import Case
from conformance.cases.forced import ended, forced, pictures
from conformance.cases.least import LOG_PROB_IDS, LOG_PROBS, LOGITS, PAIR
from conformance.cases.prompt import Answer, Prompt
from conformance.judge.choices import IDS, Along, Choices, malformed
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.measure.finding import Finding
from conformance.oracle.beams import searched
from conformance.oracle.run_case import models, program
from conformance.peers.guard import PeerError, call, line
from conformance.peers.protocol import OptionalMembers, Peer, Skip, optional
from conformance.target import Target
from t5g2ref.config import Config
from t5g2ref.dtypes import DType
from t5g2ref.model import T5Gemma2
from t5g2ref.trace import Trace

Array = np.ndarray[Any, Any]
Progress = Callable[[str], None]
OUTSIDE = "generation alone"


class Recorded(OptionalMembers):
    """The answers of a case as a peer: it shows the logits that each id was chosen from, or log-probabilities."""

    probed = False

    def __init__(self, name: str, dtype: str, starts: list[int], answers: list[Answer]) -> None:
        self.name, self.dtype = name, dtype
        self._answers = list(zip(starts, answers, strict=True))
        self.taps = (LOGITS,) if all(answer.logits is not None for answer in answers) else PAIR

    def versions(self) -> dict[str, str]:
        return {}

    def open(self, target: Target) -> None:
        """Nothing is loaded: the answers are there."""

    def run(self, case: Case, dump: Dump) -> None:
        for n, answer in self._answers:
            new = answer.ids[:, n:]
            for step in range(new.shape[1]):
                dump.new_call()
                if self.taps == (LOGITS,):
                    dump.put(LOGITS, answer.logits[:, step : step + 1])
                else:
                    dump.put(LOG_PROBS, answer.log_probs[:, step : step + 1, None])
                    dump.put(LOG_PROB_IDS, new[:, step : step + 1, None])

    def close(self) -> None:
        """Nothing is held that would have to be freed."""


def judge_generated(
    peer: Peer, target: Target, case: Case, progress: Progress = lambda _: None, *, repeat: bool = True
) -> Judgement:
    """Ask an opened peer's `generate` for the case's prompts, and judge what it answers.

    Args:
        repeat: whether it is asked twice, and the answers compared bit for bit.
    """
    began = time.perf_counter()
    progress(f"{case.name}: {peer.name}")
    failed = Judgement(peer.name, case.name, dtype=peer.dtype)
    if optional(peer, "generate") is None:
        return replace(failed, skipped="it has no generate()")
    try:
        answers = _answers(peer, case)
        again = _answers(peer, case) if repeat else answers
    except Skip as skip:
        return replace(failed, skipped=str(skip) or "it does not say why")
    except PeerError as error:
        return replace(failed, error=str(error))
    ran = time.perf_counter()
    for n, (prompt, answer) in enumerate(zip(case.prompts, answers, strict=True)):
        if wrong := malformed(prompt, answer, target.config):
            return replace(failed, exact=[Finding(IDS, n, "exact", detail=f"prompt {n}: {wrong}")])
    differ = unlike(answers, again)
    answers = [_cut(p, a, target.config) for p, a in zip(case.prompts, answers, strict=True)]
    made = replace(
        case, runs=tuple(forced(p, a.ids, target.config) for p, a in zip(case.prompts, answers, strict=True))
    )
    found = replace(_judged(peer, target, made, answers, progress), made=made)
    if repeat:
        found = replace(found, repeated=len(found.local) or len(found.exact), unsteady=differ)
    return replace(found, seconds={"peer": ran - began, "reference": time.perf_counter() - ran})


def _answers(peer: Peer, case: Case) -> list[Answer]:
    """The peer's answers on the host. Raises PeerError for what is no answer, and Skip as the peer does."""
    found = [_host(call("generate()", optional(peer, "generate"), p.copied(), passing=(Skip,))) for p in case.prompts]
    for name in ("logits", "log_probs"):
        if len({getattr(answer, name) is None for answer in found}) > 1:  # what is there would not be judged
            raise PeerError(f"generate() gives {name} for some prompts of a case and not for others: give all, or none")
    return found


def _host(answer: Any) -> Answer:
    if not all(hasattr(answer, name) for name in ("ids", "logits", "log_probs", "scores")):
        raise PeerError(
            f"generate() gave {line(repr(type(answer).__name__))}, expected an Answer: see `explain generation`"
        )
    found: dict[str, Any] = {}
    for name in ("ids", "logits", "log_probs", "scores"):
        value = getattr(answer, name)
        if value is not None and not isinstance(value, np.ndarray) and not on_device(value):
            raise PeerError(f"generate() gave {name} as {line(type(value).__name__)}, expected an array")
        found[name] = value if value is None else np.asarray(to_host(value) if on_device(value) else value)
    if found["ids"] is None:
        raise PeerError("generate() gave no ids")
    return Answer(**found)


def _cut(prompt: Prompt, answer: Answer, config: Config) -> Answer:
    """The answer up to where its last row ends. Pad behind that is what a program of fixed shapes gives; anything else
    stays, and is found."""
    n = prompt.begin(config).shape[1]
    new = int((~ended(answer.ids, n, prompt.stop)[:, n - 1 : -1]).any(axis=0).sum())
    if (answer.ids[:, n + new :] != config.decoder.pad_token_id).any():
        return answer
    logits, log_probs = (x if x is None else x[:, :new] for x in (answer.logits, answer.log_probs))
    return Answer(answer.ids[:, : n + new], logits, log_probs, answer.scores)


def _judged(peer: Peer, target: Target, made: Case, answers: list[Answer], progress: Progress) -> Judgement:
    """The logits along the answers, then what was made of them."""
    starts, asked = [run.bounds[0][1] for run in made.runs], list(zip(made.prompts, answers, strict=True))
    dtype = cast(DType, peer.dtype)
    found = Judgement(peer.name, made.name, dtype=dtype, outside=OUTSIDE)
    shown = Recorded(peer.name, dtype, starts, answers)
    if all(getattr(answer, "logits" if shown.taps == (LOGITS,) else "log_probs") is not None for answer in answers):
        found = replace(judge(cast(Any, shown), target, made, progress, repeat=False), outside=OUTSIDE)
    first, exact = 0, list[Finding]()
    for run, of, along in zip(
        made.runs, asked, _ours(target, made, answers, dtype, search=found.culprit is None), strict=True
    ):
        exact += Choices(*of, along, target.config, dtype).findings(first)
        first += len(run.bounds)
    return replace(found, exact=[*found.exact, *exact])


def _ours(target: Target, made: Case, answers: list[Answer], dtype: DType, *, search: bool) -> Sequence[Along | None]:
    """What our models have along each answer; None for all where the peer's own logits say enough.

    Args:
        search: whether the truth's own beams are looked for. Of logits that fail, others follow.
    """
    asked = list(zip(made.prompts, answers, strict=True))
    if all(answer.logits is not None and prompt.beams == 1 for prompt, answer in asked):
        return [None] * len(answers)
    ours = models(target.config, target.rounded(dtype), made, dtype, target.backend)
    found = list[Along]()
    for (prompt, answer), (truth, *controls) in zip(asked, _along(ours, target, made), strict=True):
        begin, wanted = prompt.begin(target.config), search and prompt.beams > 1 and not prompt.stop
        new, step = answer.ids.shape[1] - begin.shape[1], _step(ours[0], prompt, target)
        found.append(Along(truth, controls, searched(step, begin, prompt.beams, new) if wanted else None))
    return found


def _along(ours: list[T5Gemma2], target: Target, made: Case) -> list[list[Array]]:
    """For each run of the case, each of our models' logits (R, L, V) in float64."""
    every = [_logits(model, target, made) for model in ours]
    return [list(of_run) for of_run in zip(*every, strict=True)]


def _logits(model: T5Gemma2, target: Target, made: Case) -> list[Array]:
    """One model's logits (R, L, V) for each run of the case."""
    seen: list[Array] = []

    def look(name: str, value: Any) -> Any:
        if name == LOGITS:
            seen.append(np.asarray(target.backend.host(model.nx.wide(value)), np.float64))
        return value

    with target.backend.scope():
        program(made)(model, lambda _: Trace(look))
    calls = iter(seen)
    return [np.concatenate([next(calls) for _ in run.bounds], axis=1) for run in made.runs]


def _step(model: T5Gemma2, prompt: Prompt, target: Target) -> Callable[[Array], Array]:
    """The truth's logits of the next id behind any ids of the prompt's rows and beams, without a cache."""
    mask = prompt.attention_mask
    encoded = model.encode(
        np.repeat(prompt.input_ids, prompt.beams, axis=0),
        None if mask is None else np.repeat(mask, prompt.beams, axis=0),
        None,
        pictures(prompt, target.config),
    )
    empty = model.start(encoded)

    def step(ids: Array) -> Array:
        hidden, _ = model.decode(ids, empty)
        return np.asarray(target.backend.host(model.logits(hidden[:, -1:])), np.float64)[:, 0]

    return step


def unlike(first: list[Answer], again: list[Answer]) -> str:
    """Where the bits of two runs differ, in words; "" where they never do."""
    for n, (a, b) in enumerate(zip(first, again, strict=True)):
        for name in ("ids", "logits", "log_probs", "scores"):
            x, y = getattr(a, name), getattr(b, name)
            if (x is None) != (y is None) or (x is not None and (x.shape != y.shape or x.tobytes() != y.tobytes())):
                return f"two calls of generate() for prompt {n} give other {name}"
    return ""
