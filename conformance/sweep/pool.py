"""Does jobs in several processes: each makes its state once, has a core of its own, and ends with its parent.

A process that dies costs the job that it had in hand and nothing else. Another takes its place and tries that job once
more. Each has a pipe of its own: a lock that all of them share would stay locked by the one that died.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from threadpoolctl import threadpool_limits

from conformance.sweep.task import PROCESS, Task, Waiting

CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
LOOK = 1.0  # seconds between two looks at who has died in silence
PATIENCE = 5.0  # seconds for a process that is told to end

LAST = -1  # the number of what a process does at the end
State = tuple[Callable[..., Any], tuple[Any, ...], Callable[[Any, Any], Any], Callable[[Any], Any] | None]
"""`start`, what it is given, `work` and `last` of a task."""


def done(task: Task, jobs: Sequence[Any], processes: int) -> Iterator[tuple[Any, Any]]:
    """(job, result) as they come, of so many processes on this machine."""
    waiting = Waiting(jobs, task)
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        state = (task.start, task.given, task.work, task.last)
        workers = [Worker(i, processes, folder, state) for i in range(min(processes, len(jobs)))]
        try:
            yield from _done(workers, waiting)
            for worker in workers:
                worker.dismiss()
        finally:
            for worker in workers:
                worker.end()


def _done(workers: Sequence[Worker], waiting: Waiting) -> Iterator[tuple[Any, Any]]:
    for worker in workers:
        worker.take(waiting)
    while busy := [worker for worker in workers if worker.number is not None]:
        ready = wait([worker.pipe for worker in busy], LOOK)
        for worker in busy:
            # What a process has started may hold its end of the pipe when it has died.
            if worker.pipe not in ready and not worker.is_dead:
                continue
            number, job = worker.number, worker.job
            assert number is not None
            try:
                error, result = worker.answer()
            except EOFError:
                how = worker.died()
                if number == LAST:
                    worker.finished()
                    continue
                worker.start()
                waiting.died(worker.index)
                if waiting.again(number):
                    worker.give(number, job)
                    continue
                error, result = None, waiting.lost(job, how)
            if error is not None:
                raise error
            waiting.released(number)
            for free in (worker, *(other for other in workers if other.number is None)):
                free.take(waiting)
            yield job, result
    assert not waiting, f"{len(waiting)} jobs were given to nobody"


class Worker:
    """A process, the pipe to it, and the job that it has in hand; `number` is None where there is none.

    Args:
        index, processes: of those beside it, between which the cores are shared.
        folder: for its temporary files.
        daemon: whether it is ended when this process exits without having ended it.
    """

    pipe: Connection

    def __init__(self, index: int, processes: int, folder: str, state: State, *, daemon: bool = False) -> None:
        self.index, self._given, self._daemon = index, (index, processes, folder, *state), daemon
        self.number: int | None = None
        self.job: Any = None
        self._closed = False
        self.start()

    def start(self) -> None:
        self.pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs, *self._given), daemon=self._daemon)
        with deaf():
            self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self._process.exitcode is not None

    def answer(self) -> tuple[BaseException | None, Any]:
        """(error, result) of what it was given. EOFError where it has died."""
        try:
            if not self.pipe.poll():
                raise EOFError
            answer: tuple[BaseException | None, Any] = self.pipe.recv()
        except OSError as error:
            raise EOFError from error
        return answer

    def take(self, waiting: Waiting) -> None:
        """Give it the next job if there is one, and room; where none will come, what comes last."""
        if self.number is None and self.is_dead and not self._closed:  # it died while it waited for room
            self.end()
            self.start()
            waiting.died(self.index)
        found = waiting.next(self.index)
        if self.number == LAST:
            self.finished()
        self.number, self.job = None, None
        if found is not None:
            self.give(*found)
        elif not waiting and not self._closed and self._given[-1] is not None:
            self.give(LAST, None)

    def finished(self) -> None:
        """It has done what comes last."""
        self.number, self._closed = None, True

    def give(self, number: int, job: Any) -> None:
        self.number, self.job = number, job
        with suppress(BrokenPipeError):  # it has died: that is found when its answer is read
            self.pipe.send(job)

    def died(self) -> str:
        """How the process ended, in words."""
        self._process.join(PATIENCE)  # or what ends it now would be blamed
        self.end()
        code = self._process.exitcode or 0
        return f"its process ended by {_signal(-code)}" if code < 0 else f"its process ended with status {code}"

    def dismiss(self) -> None:
        """Let it end by itself."""
        self.pipe.close()
        self._process.join(PATIENCE)

    def stop(self) -> None:
        """Tell it to end at once. Whoever waits for its answer finds that it died."""
        self._process.terminate()

    def end(self) -> None:
        """See to it that it has ended."""
        self.pipe.close()
        self.stop()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name} (out of memory, it may be)" if name == "SIGKILL" else name


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started in the block never hear Ctrl-C, which the terminal sends to all: their parent ends
    them. It hears its own after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def able_to_start() -> None:
    """Let this process start others, though it is to be ended with its parent: multiprocessing would refuse."""
    me = multiprocessing.current_process()
    if me.daemon:
        me.daemon = False


def _end_with_parent() -> None:
    """End when the parent has: it may be killed while a job takes minutes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _serve(
    pipe: Connection,
    index: int,
    processes: int,
    folder: str,
    start: Callable[..., Any],
    given: tuple[Any, ...],
    work: Callable[[Any, Any], Any],
    last: Callable[[Any], Any] | None,
) -> None:
    """What a process does: it answers each job with (error, result), until its parent closes the pipe."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    able_to_start()  # a peer may start processes too
    tempfile.tempdir = folder  # deleted by the parent, also when this process is ended
    _own_core(index, processes)
    if processes > 1:
        os.environ[PROCESS] = str(index)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # torch comes later
    threadpool_limits(1)
    with suppress(EOFError, ConnectionError):
        gc.disable()  # until a first job is done: what is imported stays, and looking through it takes seconds
        try:
            state = start(*given)
        except BaseException as error:
            pipe.send((_sendable(error), None))
            return
        while True:
            job = pipe.recv()
            try:
                result = last(state) if job is None and last is not None else work(state, job)
                answer: tuple[BaseException | None, Any] = None, result
            except BaseException as error:
                answer = _sendable(error), None
            if not gc.isenabled():
                gc.collect()  # what is frozen as garbage would stay
                gc.freeze()
                gc.enable()
            pipe.send(answer)


def _sendable(error: BaseException) -> BaseException:
    """The error with its traceback, or where it does not survive the way, its words."""
    told = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(told)
    error.add_note(told)
    return error


def _own_core(index: int, processes: int) -> None:
    """Each process on cores of its own: then its threads do not wait for those of another."""
    with suppress(AttributeError, OSError):  # some systems cannot, or do not let
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= processes:
            os.sched_setaffinity(0, cores[index % processes :: processes])
