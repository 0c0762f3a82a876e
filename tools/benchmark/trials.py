"""The runs before the timed ones: how far each side's result is from the reference's, its memory and its seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmark.timing import Meter, Work, distance, tried

Array = np.ndarray[Any, Any]
Attempt = Callable[[str, Callable[[], object], str], bool]


@dataclass(frozen=True)
class Tried:
    """As in `Trial`, with the distance in place of the numbers themselves."""

    memory: int | None
    seconds: float
    distance: float


@dataclass
class Trials:
    """The sides of one row; the first that can be run is the reference.

    Args:
        what: the row's name, for a failure.
        attempt: runs an action and keeps what fails; see `Bench.attempt`.
        twice: whether memory and seconds are those of a second run, where all is warm.
    """

    what: str
    attempt: Attempt
    meter: Callable[[str], Meter]
    wait: Callable[[], None]
    twice: bool

    def all(self, works: dict[str, Work]) -> dict[str, Tried]:
        """Each side that could be run."""
        self._reference: Array | None = None
        self._found: dict[str, Tried] = {}
        for name, work in works.items():
            self.attempt(f"{self.what} by {name}", partial(self._one, name, work), name)
        return self._found

    def _one(self, name: str, work: Work) -> None:
        meter = self.meter(name)
        trial = tried(work, meter, self.wait)
        apart = self._apart(work, trial.sample)  # samples are large: only the reference's is kept
        for _ in range(work.warmups):
            work.run(work.prepare())
        if self.twice:
            trial = tried(work, meter, self.wait, checked=False)
        self._found[name] = Tried(trial.memory, trial.seconds, apart)

    def _apart(self, work: Work, sample: Array) -> float:
        if self._reference is None:
            self._reference = sample
            return finite(sample)
        return distance(sample, work.alike(self._reference))


def finite(sample: Array) -> float:
    """0, or NaN where a number is not finite: the distance of a result that has no counterpart."""
    return 0.0 if np.isfinite(sample).all() else math.nan
