"""Progress on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from conformance.terminal import console

QUIET_SECONDS = 20.0  # a log gets no line sooner than so long after the last


class Reporter:
    """Says what is being done; `bar` is a rich progress bar, disabled where standard error is no terminal."""

    def __init__(self, bar: Progress, *, log: bool) -> None:
        self._bar = bar
        self._log = log
        self._task = bar.add_task("reading the checkpoint", total=None)
        self._began = self._said = time.monotonic()
        self._done, self._total = 0, 0

    def tensors(self, name: str, done: int, total: int) -> None:
        """While weights are downloaded, read or made; a log hears of the slow ones."""
        self._bar.update(self._task, description=f"weights: {name}", completed=done, total=total)
        self._logged(f"{done} of {total}  weights: {name}")

    def start(self, total: int) -> None:
        self._total = total
        self._bar.update(self._task, completed=0, total=total)

    def say(self, what: str) -> None:
        self._bar.update(self._task, description=what)
        self._logged(f"{self._done} of {self._total}  {what}")

    def step(self) -> None:
        self._done += 1
        self._bar.advance(self._task)

    def _logged(self, what: str) -> None:
        """A line now and then, where nobody watches a bar."""
        now = time.monotonic()
        if self._log and now - self._said > QUIET_SECONDS:
            self._said = now
            print(f"{now - self._began:5.0f} s  {what}", file=sys.stderr, flush=True)


@contextmanager
def reporting(*, quiet: bool) -> Iterator[Reporter]:
    """A reporter for the length of the block; `quiet` gives one that says nothing."""
    columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    watched = sys.stderr.isatty()
    bar = Progress(*columns, console=console(stderr=True), transient=True, disable=quiet or not watched)
    with bar:
        yield Reporter(bar, log=not quiet and not watched)
