"""Does jobs in several processes: each makes its state once, has a core of its own, and ends with its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any

from threadpoolctl import threadpool_limits

CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
WAIT = 0.05  # seconds between two looks at what workers tell while they work
_STATE: list[Any] = []  # of a worker process


def done(
    start: Callable[..., Any],
    given: tuple[Any, ...],
    work: Callable[[Any, Any], Any],
    jobs: list[Any],
    processes: int,
    heard: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Any, Any]]:
    """(job, result) as they come. `work(state, job)` is called where `state = start(*given)` was made.

    Args:
        start, work: functions of a module, which a process can import.
        given: what can be pickled, or a queue of CONTEXT.
        heard: called again and again while workers work, and once more when a result has come.
    """
    with (
        tempfile.TemporaryDirectory(prefix="conformance-") as folder,
        ProcessPoolExecutor(
            processes, CONTEXT, _start, (folder, CONTEXT.Value("i", 0), processes, start, given)
        ) as pool,
    ):
        with deaf():
            waiting: dict[Future[Any], Any] = {pool.submit(_there, work, job): job for job in jobs}
        try:
            while waiting:
                finished = wait(waiting, timeout=WAIT, return_when=FIRST_COMPLETED).done
                heard()
                for future in finished:
                    yield waiting.pop(future), future.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started in the block never hear Ctrl-C, which the terminal sends to all: their parent ends
    them. It hears its own after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(folder: str, turn: Any, processes: int, start: Callable[..., Any], given: tuple[Any, ...]) -> None:
    tempfile.tempdir = folder  # deleted by the parent, also when this process is ended
    _own_core(turn, processes)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # torch comes later
    threadpool_limits(1)
    _STATE[:] = [start(*given)]


def _own_core(turn: Any, processes: int) -> None:
    """Each process on cores of its own, in turn: then its threads do not wait for those of another."""
    with suppress(AttributeError, OSError), turn.get_lock():  # some systems cannot, or do not let
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= processes:
            os.sched_setaffinity(0, cores[turn.value % processes :: processes])
        turn.value += 1


def _there(work: Callable[[Any, Any], Any], job: Any) -> Any:
    return work(_STATE[0], job)
