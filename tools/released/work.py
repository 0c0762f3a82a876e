"""Has the verdicts of releases, one after another: in this process, in several, or on the workers of a cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.exchange.plain import WORDS, PlainError
from conformance.sweep.engine import Engine
from conformance.sweep.task import Task
from released.environments import made
from released.listed import Job
from released.verdict import judged

TIMEOUT = 1800.0  # seconds for a verdict
Verdict = dict[str, Any] | str
"""A small verdict, or why there is none."""


@dataclass(frozen=True)
class Given:
    """What all verdicts have in common.

    Args:
        environments: the folder where each release is installed; on a cluster, of every machine.
        bases: a package's name → the Python that its environments stand on.
    """

    environments: Path
    bases: Mapping[str, str]

    def verdict(self, job: Job) -> Verdict:
        """The verdict of a job; why there is none, where its release could not be installed."""
        base = self.bases.get(job.package.name, sys.executable if job.package.judges else None)
        try:
            python = made(self.environments, job.package, job.version, base)
            return judged(job, python, TIMEOUT)
        except subprocess.CalledProcessError as error:
            return ((error.stderr or "").strip().splitlines() or [str(error)])[-1]
        except subprocess.TimeoutExpired:
            return f"took more than {TIMEOUT:g} s"


def verdicts(
    given: Given, wanted: Sequence[Job], engine: Engine, here: Callable[[Given, Job], Verdict] = Given.verdict
) -> Iterator[tuple[Job, Verdict]]:
    """(job, its verdict) as they come. Processes take different releases, as long as there are."""
    if engine.here(wanted):
        yield from ((job, here(given, job)) for job in wanted)
        return
    task = Task(
        _same,
        (given,),
        Given.verdict,
        alike=lambda job: (job.package.name, job.version),
        lost=lambda _, how: how,
        checked=_checked,
    )
    yield from engine.done(task, wanted)


def _same(given: Given) -> Given:
    return given


def _checked(job: Job, raw: Any) -> Verdict:
    """A verdict from another machine, which its file holds and the page shows."""
    if isinstance(raw, str):
        return raw
    said = [raw.get(name) for name in ("package", "version", "way")] if isinstance(raw, dict) else None
    if said != [job.package.name, job.version, job.way.name]:
        raise PlainError(f"expected the verdict of {job.file}")
    worst = raw.get("worst", 0.0)
    return raw | ({"worst": WORDS[worst]} if worst in WORDS else {})
