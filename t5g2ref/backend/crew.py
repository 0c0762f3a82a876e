"""Threads over blocks of rows, so that every core works in every stage and not in the products alone.

NumPy computes without the interpreter's lock, so plain threads do. While they work the BLAS has one thread, and for all
else it has its own: never both at once. They are as many as the BLAS has been given, so what limits it
(`threadpoolctl`, OPENBLAS_NUM_THREADS=1) limits them too. Where it cannot be asked (MKL, Accelerate, Windows) it keeps
its threads, and there are none here.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
Job = Callable[[], T]
HERE = threading.local()  # `crew`: that of the call of the model which this thread is in
ALONE = threading.Lock()  # held by the one crew that works: how many threads the BLAS has, it has for the whole process
OPENBLAS = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")


class Crew:
    """The threads of one call of the model: they start when they are first needed, and end with the call."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def work(self, jobs: Sequence[Job[T]], threads: int) -> list[T]:
        """The jobs' results, in their order. Each thread takes the next that nobody has, the caller's among them. The
        first error lets no further job begin, and is raised when those that had begun have ended."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="t5g2ref")
        todo, results = deque(enumerate(jobs)), dict[int, T]()
        others = [self._pool.submit(copy_context().run, _take, todo, results) for _ in range(threads - 1)]
        HERE.crew = None  # a job has no crew of its own, in whatever thread it runs
        try:
            _take(todo, results)
        finally:
            HERE.crew = self
            wait(others)
        for other in others:
            other.result()
        return [results[i] for i in range(len(jobs))]


def _take(todo: deque[tuple[int, Job[T]]], results: dict[int, T]) -> None:
    try:
        while True:
            try:
                i, job = todo.popleft()
            except IndexError:
                return
            results[i] = job()
    except BaseException:
        todo.clear()
        raise


@contextmanager
def together() -> Iterator[None]:
    """A call of the model, which may have a crew; one inside another has the outer one's."""
    if getattr(HERE, "crew", None) is not None:
        yield
        return
    HERE.crew = crew = Crew()
    try:
        yield
    finally:
        HERE.crew = None
        crew.close()


def threads() -> int:
    """How many threads jobs would have here, now: 1 outside a call of the model, and inside a job."""
    if getattr(HERE, "crew", None) is None or (blas := _blas()) is None:
        return 1
    return min(blas[0](), cores())


def each(jobs: Sequence[Job[T]]) -> list[T]:
    """The jobs' results, in their order: made side by side where there is a crew that nobody else is before."""
    count = min(threads(), len(jobs)) if len(jobs) > 1 else 1
    if count < 2 or not ALONE.acquire(blocking=False):
        return [job() for job in jobs]
    try:
        with _one_thread():
            results: list[T] = HERE.crew.work(jobs, count)
        return results
    finally:
        ALONE.release()


@contextmanager
def _one_thread() -> Iterator[None]:
    """The BLAS with one thread, in the whole process."""
    blas = _blas()
    assert blas is not None, "threads() has asked it"
    get, put = blas
    before = get()
    put(1)
    try:
        yield
    finally:
        if get() == 1:  # else somebody has set it meanwhile, who knows better
            put(before)


@cache
def _blas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Reads and sets the number of threads of the OpenBLAS that NumPy is linked with. It is found through NumPy itself:
    others in the process (SciPy's, torch's) are no concern of ours. None where there is no such thing."""
    with suppress(KeyError, OSError, TypeError):
        library: Any = ctypes.CDLL(sys.modules["numpy._core._multiarray_umath"].__file__)
        for name in OPENBLAS:
            with suppress(AttributeError):
                return library[name.format("get_num_threads")], library[name.format("set_num_threads")]
    return None


def cores() -> int:
    """How many cores this process may use."""
    with suppress(AttributeError, OSError):  # a system that does not know, or does not say
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if hasattr(
    os, "register_at_fork"
):  # a child has none of its parent's threads: what it was in the middle of has no crew
    os.register_at_fork(after_in_child=lambda: HERE.__dict__.clear())
