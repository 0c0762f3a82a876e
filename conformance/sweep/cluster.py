"""Does jobs on many machines: a Dask scheduler knows who is there, and each of its workers' threads has a process.

Dask would give a job whose worker died to others, as often as its own settings say, and then give up all of them. So
each job is bound to one worker, and who takes it next is decided here, as between processes of one machine: a worker
that dies costs what it had in hand, which is tried once more. Workers may come and go.
"""

from __future__ import annotations

import pickle
import queue
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from conformance.errors import Unavailable, UsageError
from conformance.exchange.plain import PlainError
from conformance.sweep import remote
from conformance.sweep.client import client_of
from conformance.sweep.pool import LAST, LOOK
from conformance.sweep.task import Task, Waiting
from t5g2ref.config.fields import from_json

FIRST = 10.0  # seconds for a first worker
GATHER = 30.0  # seconds for an answer to come, once it is there
PATIENCE = 60.0  # seconds without any worker, after which nothing more is waited for
ONE_SOURCE = "install the same t5g2ref, numpy and Python there"


def done(task: Task, jobs: Sequence[Any], address: str, most: int | None = None) -> Iterator[tuple[Any, Any]]:
    """(job, result) as they come, of the workers of a Dask scheduler.

    Args:
        address: the scheduler's.
        most: processes; None for one a thread of every worker.

    Raises:
        Unavailable: Dask is not installed, the scheduler cannot be reached, or it has no worker.
        UsageError: a worker has other versions, or found another checkpoint or none.
    """
    with client_of(address) as client:
        cluster = _Cluster(client, address, task, jobs, most)
        cluster.begin()
        try:
            yield from cluster.results()
        finally:
            cluster.end()


@dataclass(eq=False)
class _Slot:
    """A thread of a worker.

    Args:
        here: the worker's process; see `remote.HERE`.
        first: whether it was there when the run began.
        job: (number, job) that it has in hand; None for none.
        used: whether something was done there since it last closed what it had open.
    """

    address: str
    number: int
    here: str
    first: bool
    job: tuple[int, Any] | None = None
    future: Any = None
    used: bool = False


class _Cluster:
    """The workers of a scheduler, and the jobs that are left."""

    def __init__(self, client: Any, address: str, task: Task, jobs: Sequence[Any], most: int | None) -> None:
        self._client, self._address, self._task, self._most = client, address, task, most
        self._run, self._packed, self._asked = uuid.uuid4().hex, remote.packed(task), 0
        self._waiting, self._slots = Waiting(jobs, task), dict[str, list[_Slot]]()
        self._answers = queue.SimpleQueue[tuple[_Slot, Any]]()
        self._alone = time.monotonic()  # since when there is no worker
        self._odd = set[str]()  # workers that came later, and cannot be had

    def begin(self) -> None:
        """Find the workers. Raises UsageError where one has other versions, Unavailable where there is none."""
        end = time.monotonic() + FIRST
        while not self._slots:
            self._look(first=True)
            if not self._slots and time.monotonic() > end:
                start = f"start some with `dask worker {self._address}`"
                raise Unavailable(f"--cluster {self._address}: the scheduler has no workers; {start}")
            time.sleep(0 if self._slots else 0.2)

    def results(self) -> Iterator[tuple[Any, Any]]:
        looked = time.monotonic()
        while True:
            self._give()
            if not self._busy and not len(self._waiting):
                return
            if (answer := self._next()) is not None:
                yield from self._answered(*answer)
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                yield from self._look()

    def _next(self) -> tuple[_Slot, Any] | None:
        """The next answer; None where none comes for a while."""
        try:
            return self._answers.get(timeout=LOOK)
        except queue.Empty:
            return None

    def end(self) -> None:
        """Cancel what is left, and end the processes."""
        with suppress(Exception):
            self._client.cancel([slot.future for slot in self._busy], force=True)
        with suppress(Exception):
            self._client.run(remote.end, self._run, on_error="ignore")

    @property
    def _every(self) -> list[_Slot]:
        return [slot for slots in self._slots.values() for slot in slots]

    @property
    def _busy(self) -> list[_Slot]:
        return [slot for slot in self._every if slot.job is not None]

    # Who is there

    @property
    def _room(self) -> int:
        """How many more threads are wanted."""
        return sys.maxsize if self._most is None else self._most - len(self._every)

    def _look(self, *, first: bool = False) -> list[tuple[Any, Any]]:
        """Find out who has come and gone. (job, result) of what is not tried any more."""
        there, lost = self._there(), list[tuple[Any, Any]]()
        for address in [address for address in self._slots if address not in there]:
            lost += self._gone(address)
        new = [address for address in there if address not in self._slots and address not in self._odd]
        if new and self._room > 0:
            told = self._client.run(remote.about, workers=new, on_error="return")
            for address in new:
                self._come(address, there[address], told.get(address), first=first)
        if self._slots:
            self._alone = time.monotonic()
        elif self._closed or (not first and time.monotonic() - self._alone > PATIENCE):
            lost += self._forsaken()
        return lost

    @property
    def _closed(self) -> bool:
        return self._client.status in ("closing", "closed")

    def _there(self) -> dict[str, int]:
        """Worker → its threads; what was known while Dask looks for its scheduler."""
        try:
            if self._client.status == "running":
                found: dict[str, int] = self._client.nthreads()
                return found
        except OSError:
            pass
        return {} if self._closed else {address: len(slots) for address, slots in self._slots.items()}

    def _come(self, address: str, threads: int, told: Any, *, first: bool) -> None:
        """Take a worker. UsageError where it is none of ours; one that comes late is left out."""
        if isinstance(told, OSError):  # it has gone already, or is asked again
            return
        if wrong := _unlike(told):
            self._left_out(address, wrong, first=first)
            return
        if slots := [_Slot(address, number, told["here"], first) for number in range(min(threads, self._room))]:
            self._slots[address] = slots

    def _left_out(self, address: str, why: str, *, first: bool) -> None:
        said = f"--cluster {self._address}: worker {address} {why}"
        if first:
            raise UsageError(said)
        self._odd.add(address)
        print(f"conformance: {said}; it is left out", file=sys.stderr, flush=True)

    def _gone(self, address: str) -> list[tuple[Any, Any]]:
        """A worker is there no more. What it had in hand is tried again, or lost."""
        how = f"its worker {address} went away"
        return [one for slot in self._slots.pop(address) for one in self._again(slot, how)]

    def _forsaken(self) -> list[tuple[Any, Any]]:
        """Nobody is left to do anything."""
        why = "the scheduler went away" if self._closed else f"there was no worker for {PATIENCE:g} s"
        if self._task.lost is None:
            raise Unavailable(f"--cluster {self._address}: {why}")
        left = iter(partial(self._waiting.next, None), None)
        return [(job, self._task.lost(job, why)) for _, job in left]

    # Who does what

    def _give(self) -> None:
        """Give every free thread a job, or let it close what it has open."""
        for slot in self._every:
            if slot.job is not None:
                continue
            if (found := self._waiting.next((slot.address, slot.number))) is not None:
                self._submit(slot, *found)
            elif slot.used and self._task.last is not None:
                self._submit(slot, LAST, None)

    def _submit(self, slot: _Slot, number: int, job: Any) -> None:
        slot.job, slot.used = (number, job), number != LAST
        self._asked += 1
        given = (self._run, slot.number, slot.here, self._packed, pickle.dumps(job))
        key = f"conformance-{self._run}-{self._asked}"
        future = self._client.submit(remote.answer, *given, key=key, workers=[slot.address], pure=False, retries=0)
        slot.future = future
        future.add_done_callback(lambda done: self._answers.put((slot, done)))

    def _again(self, slot: _Slot, how: str) -> list[tuple[Any, Any]]:
        """What a thread had in hand is given to another; (job, result) where that was done before."""
        if slot.job is None:
            return []
        (number, job), slot.job, slot.future = slot.job, None, None
        if number == LAST:
            return []
        if self._waiting.again(number):
            self._waiting.back(number, job)
            return []
        return [(job, self._waiting.lost(job, how))]

    def _answered(self, slot: _Slot, future: Any) -> list[tuple[Any, Any]]:
        """(job, result) of an answer, if it is one."""
        if slot.future is not future or slot.job is None:  # it was given to another meanwhile
            return []
        what, said = self._said(future)
        if what == "moved":
            return self._gone(slot.address)
        if what == "died":
            return self._again(slot, str(said))
        (number, job), slot.job, slot.future = slot.job, None, None
        if what == "refused" and not slot.first:
            self._waiting.back(number, job)
            self._left_out(slot.address, str(said[1]), first=False)
            return self._gone(slot.address)
        try:
            if what == "result":
                return [(job, self._task.checked(job, said))]
            kind, text = said
        except (PlainError, TypeError, ValueError) as error:
            raise UsageError(f"--cluster {self._address}: worker {slot.address} sent no result: {error}") from error
        raise remote.SAID.get(str(kind), RuntimeError)(f"--cluster {self._address}: worker {slot.address}: {text}")

    def _said(self, future: Any) -> tuple[str, Any]:
        """What an answer is, and what it holds. Whatever Dask has to say of it means that its worker is lost."""
        try:
            ((what, said),) = from_json(future.result(timeout=GATHER)).items()
        except Exception as error:
            return "died", f"its worker went away ({type(error).__name__})"
        return what, said


def _unlike(told: Any) -> str:
    """In what a worker is another one than this process, in words; "" where it is the same."""
    if isinstance(told, BaseException):
        return f"cannot import conformance ({' '.join(str(told).split())}): {ONE_SOURCE}"
    theirs = told.get("versions", {}) if isinstance(told, dict) else {}
    for name, mine in remote.versions().items():
        if (found := theirs.get(name, "none")) != mine:
            what = "another source of t5g2ref" if name == "source" else f"{name} {found}, not {mine}"
            return f"has {what}: {ONE_SOURCE}"
    return ""
