"""A Dask scheduler and workers as processes of this machine, for the length of a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from processes import ROOT

DASK = [sys.executable, "-m", "dask"]
PORT = ("--port", "0", "--no-dashboard")


class Cluster:
    """A scheduler, and the workers that are started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workers, self._started = folder, list[subprocess.Popen[bytes]](), 0
        self.scheduler = self._process("scheduler", "--host", "127.0.0.1", *PORT)
        self.address = _found(folder / "scheduler.log", rb"Scheduler at: +(tcp://[\d.:]+)")

    def worker(self, *more: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
        """Start a worker of one thread; returns its process's id once it is there."""
        self._started += 1
        asked = (self.address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", *(more or ("--no-nanny",)))
        name = f"worker{self._started}"
        found = self._process("worker", *asked, name=name, environment=environment, cwd=cwd)
        self.workers.append(found)
        _found(self.folder / f"{name}.log", rb"(Registered to)")
        return found.pid

    def _process(
        self, *what: str, name: str = "scheduler", environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            own = {"PYTHONPATH": str(ROOT), "DASK_TEMPORARY_DIRECTORY": str(self.folder)} | dict(environment or {})
            return subprocess.Popen(
                [*DASK, *what], env=os.environ | own, cwd=cwd or self.folder, stdout=log, stderr=subprocess.STDOUT
            )

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def _found(log: Path, pattern: bytes) -> str:
    """What a process says once it is ready."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if match := re.search(pattern, log.read_bytes()):
            return match[1].decode()
        time.sleep(0.05)
    raise AssertionError(log.read_text(errors="replace"))


@contextmanager
def dask_cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """A cluster of so many workers."""
    cluster = Cluster(folder)
    try:
        for _ in range(workers):
            cluster.worker()
        yield cluster
    finally:
        cluster.end()
