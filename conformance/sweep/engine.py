"""One scheduler for all that is done many at once: in processes of this machine, or of a Dask cluster's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.sweep.task import Task


@dataclass(frozen=True)
class Engine:
    """Where jobs are done.

    Args:
        processes: how many at most; None for one a core, or a thread of every worker.
        cluster: the address of a Dask scheduler; "" for this machine.
    """

    processes: int | None = None
    cluster: str = ""

    def here(self, jobs: Sequence[Any]) -> bool:
        """Whether this process itself does the jobs: another one beside it would only wait."""
        return not self.cluster and min(self._processes, len(jobs)) <= 1

    @property
    def _processes(self) -> int:
        return self.processes or os.cpu_count() or 1

    def done(self, task: Task, jobs: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """(job, result) as they come. Raises what a job raises, and as `cluster.done` does."""
        if self.cluster:
            from conformance.sweep import cluster

            return cluster.done(task, jobs, self.cluster, self.processes)
        from conformance.sweep import pool  # late: a command's options name an engine, and import no more

        return pool.done(task, jobs, self._processes)
