"""A peer with a fault that generates: our own model, asked for the whole answer so far at each step.

It keeps no loop of its own that could hide a fault. The cache is the model's, filled a call a step, as `generate` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.cases.case import Case, Run
from conformance.cases.forced import ended, forced
from conformance.cases.least import LOGITS
from conformance.cases.prompt import Answer, Prompt
from conformance.defects.injection import HEALTHY, Fault
from conformance.oracle.beams import searched
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref.backend import NUMPY, Backend
from t5g2ref.numerics import SDPA, Profile

Array = np.ndarray[Any, Any]


class SpeakingPeer(FaultyPeer):
    """A faulty peer with a `generate`.

    Args:
        fault: what is wrong: in the model, or in what is made of its logits.
    """

    def __init__(self, fault: Fault | None = None, backend: Backend = NUMPY, profile: Profile = SDPA) -> None:
        super().__init__(HEALTHY if fault is None else fault.inject, backend, profile=profile)
        self._answered = None if fault is None else fault.answered
        self._stays = fault is not None and fault.stays
        self._before: list[tuple[Prompt, Run]] = []

    def open(self, target: Target) -> None:
        super().open(target)
        self._before = []

    def generate(self, prompt: Prompt) -> Answer:
        """Greedy, or beams; what was asked before lies before it on the same objects."""
        assert self._target is not None
        answer = self._beams(prompt) if prompt.beams > 1 else self._greedy(prompt)
        self._before.append((prompt, forced(prompt, answer.ids, self._target.config)))
        return answer if self._answered is None else self._answered(prompt, answer, self._target.config)

    def _greedy(self, prompt: Prompt) -> Answer:
        assert self._target is not None
        ids, pad = prompt.begin(self._target.config), self._target.config.decoder.pad_token_id
        start, steps = ids.shape[1], list[Array]()
        while len(steps) < prompt.new and not (over := ended(ids, start, prompt.stop)[:, -1]).all():
            steps.append(self._logits(prompt, ids)[:, -1])
            likeliest = np.where(over, pad, steps[-1].argmax(axis=-1))
            ids = np.concatenate([ids, likeliest[:, None]], axis=1)
        return Answer(ids, np.stack(steps, axis=1))

    def _beams(self, prompt: Prompt) -> Answer:
        """The definition's search over what the model says. A fault may leave the cache's rows where they are."""
        assert self._target is not None
        begin = prompt.begin(self._target.config)
        slots = np.repeat(begin, prompt.beams, axis=0)
        seen: list[Array] = []

        def step(ids: Array) -> Array:
            nonlocal slots
            if self._stays and ids.shape[1] > slots.shape[1]:  # only the newest id is handed over
                slots = np.concatenate([slots, ids[:, -1:]], axis=1)
            seen.append(self._logits(prompt, slots if self._stays else ids)[:, -1].astype(np.float64))
            return seen[-1]

        found = searched(step, begin, prompt.beams, prompt.new)
        along = self._logits(prompt, found.ids[:, :-1])
        if self._stays:
            along = np.stack([seen[t][found.sources[:, t]] for t in range(prompt.new)], axis=1).astype(np.float32)
        return Answer(found.ids, along, scores=found.scores)

    def _logits(self, prompt: Prompt, ids: Array) -> Array:
        """(R, L, V): the logits behind the start, and behind each further id."""
        assert self._target is not None
        config = self._target.config
        run = forced(prompt, np.pad(ids, ((0, 0), (0, 1))), config)
        prompts, runs = zip(*self._before, (prompt, run), strict=True)
        case = Case("generate", "", runs, prompts=prompts)
        with Dump(self._target.backend) as dump:
            self.run(case, dump)
            last = [dump.get(n, LOGITS) for n in range(dump.calls)][-len(run.bounds) :]
        return np.concatenate([self._target.backend.host(value) for value in last], axis=1)
