"""What many processes do, wherever they are: a task, its jobs, and who takes which of them next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.exchange.plain import encoded

TRIES = 2  # of a job whose process dies
PROCESS = "CONFORMANCE_PROCESS"  # in a process's environment: its number among those of its machine


class ProcessDied(RuntimeError):
    """The process that had a job died, and the next one as well. The message says how."""


def _plain(_: Any, result: Any) -> Any:
    return encoded(result)


@dataclass(frozen=True)
class Task:
    """What is done with every job: `work(state, job)`, where a process has made `state = start(*given)`.

    Args:
        start, work: functions of a module, which a process can import.
        given: what can be pickled, as jobs can; no job is None.
        alike: jobs of one value are best done by one process, one after the other.
        lost: the result of a job that ended two processes, from the job and how. Without it ProcessDied is raised.
        last: what a process does when there are no more jobs; that gives a result for the job None.
        plain: a result as plain JSON, from the job and it: so it comes from another machine.
        checked: a result from the job and that JSON. Raises PlainError for what is no result of the job.
        takes: how many bytes of a device that all processes share a job takes; asked once a job.
        holds: how many more its process keeps, until it has another job in hand; asked once a job.
        room: how many there are; None where no device is shared.
    """

    start: Callable[..., Any]
    given: tuple[Any, ...]
    work: Callable[[Any, Any], Any]
    last: Callable[[Any], Any] | None = None
    alike: Callable[[Any], Hashable] = lambda _: None
    lost: Callable[[Any, str], Any] | None = None
    plain: Callable[[Any, Any], Any] = _plain
    checked: Callable[[Any, Any], Any] = lambda _, raw: raw
    takes: Callable[[Any], int] = lambda _: 0
    holds: Callable[[Any], int] = lambda _: 0
    room: int | None = None


class Waiting:
    """Jobs that nobody has in hand. They lie in heaps of those that are alike."""

    def __init__(self, jobs: Sequence[Any], task: Task) -> None:
        self._task, self._tries = task, dict[int, int]()
        self._heaps: dict[Hashable, deque[tuple[int, Any]]] = {}
        self._hands: dict[Hashable, Hashable] = {}  # process → the heap that it takes from
        self._sizes = [0 if task.room is None else task.takes(job) for job in jobs]
        self._held = [0 if task.room is None else task.holds(job) for job in jobs]
        self._taken: dict[int, int] = {}  # number of a job in hand → how much it takes
        self._kept: dict[Hashable, int] = {}  # process → what it keeps of its last job
        for number, job in enumerate(jobs):
            self._heaps.setdefault(task.alike(job), deque()).append((number, job))

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    def next(self, process: Hashable) -> tuple[int, Any] | None:
        """The next job of the heap that the process is at; then of one that nobody is at; then of the largest.

        None where there is none, or no room for one beside those that are in hand.
        """
        heaps = {
            key: heap for key, heap in self._heaps.items() if any(self._fits(number, process) for number, _ in heap)
        }
        if not heaps:
            return None
        if process not in self._hands or self._hands[process] not in heaps:
            others = {key for who, key in self._hands.items() if who != process}
            free = [key for key in heaps if key not in others]
            self._hands[process] = free[0] if free else max(heaps, key=lambda key: len(heaps[key]))
        heap = heaps[self._hands[process]]
        found = next(one for one in heap if self._fits(one[0], process))
        heap.remove(found)
        self._taken[found[0]], self._kept[process] = self._sizes[found[0]], self._held[found[0]]
        return found

    def _fits(self, number: int, process: Hashable) -> bool:
        """Whether there is room for a job. Where nothing is in hand there always is: it may do with less."""
        if (room := self._task.room) is None or not self._taken:
            return True
        kept = sum(bytes_ for who, bytes_ in self._kept.items() if who != process)
        return sum(self._taken.values()) + kept + self._sizes[number] + self._held[number] <= room

    def released(self, number: int) -> None:
        """A job is in nobody's hand any more."""
        self._taken.pop(number, None)

    def died(self, process: Hashable) -> None:
        """A process ended: it keeps nothing."""
        self._kept.pop(process, None)

    def back(self, number: int, job: Any) -> None:
        """A job that nobody has begun."""
        self.released(number)
        self._heaps[self._task.alike(job)].appendleft((number, job))

    def again(self, number: int) -> bool:
        """Whether a job whose process died is tried once more."""
        self._tries[number] = self._tries.get(number, 1) + 1
        return self._tries[number] <= TRIES

    def lost(self, job: Any, how: str) -> Any:
        """The result of a job that is not tried any more. Raises ProcessDied where there is none."""
        if self._task.lost is None:
            raise ProcessDied(f"{how}, twice, at the same job")
        return self._task.lost(job, f"{how}, and so did the next that tried")
