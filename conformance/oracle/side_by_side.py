"""Several runs of the reference, side by side, that meet at every tap.

Truth and control walk the same program under different numerics. At each tap all wait for each other, one function
sees all their values, and says what each goes on with. So no run's activations are ever stored: at any moment one
tap is held, whatever the size of the model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from threadpoolctl import threadpool_limits

from conformance.oracle import taking_turns
from conformance.oracle.taking_turns import LockstepError
from t5g2ref.backend.crew import cores
from t5g2ref.trace import Trace

SMALL = 1 << 20  # numbers of a matrix, with less of which a core has no time to be handed anything

Meet = Callable[[int, str, list[Any]], list[Any]]
Program = Callable[[Any, Callable[[int], Trace]], None]
Scope = Callable[[], AbstractContextManager[object]]


def walk(
    models: Sequence[Any],
    program: Program,
    meet: Meet,
    *,
    where: Callable[[int, str], bool] = lambda *_: True,
    scope: Scope = nullcontext,
    turns: bool = False,
) -> None:
    """Run `program(model, trace_of_call)` for every model, each in its thread where that pays (`taking_turns`).

    `meet(call, name, values)` is called once at every tap, in one of the threads, and returns one value a model. The
    first error of any is raised here.

    Args:
        where: the taps (call, name) at which they meet; past the others every run goes alone.
        scope: every thread is inside one of these, and every meeting inside another of its own: what a device library
            knows by thread, and what it makes of that library's errors. They nest.
        turns: only one run computes at a time. For models on a device: they do nothing but launch kernels, one after
            the other under the interpreter's lock. Handing it to another thread, which has to be woken, takes longer
            than what that thread then does.
    """
    if _in_one_thread(models, turns):
        with threadpool_limits(1, user_api="blas"):
            taking_turns.walk(models, program, meet, where, scope)
        return
    _Walk(len(models), meet, where, scope, turns).run(models, program)


class _Turns:
    """Who computes: so many at a time, and at a tap first whoever took longest until now. One that begins last, while
    the others have nothing left to do, leaves a core idle.

    Args:
        count, at_once: runs, and how many of them compute at a time.
    """

    def __init__(self, count: int, at_once: int) -> None:
        self._free, self._changed = at_once, threading.Condition()
        self._took, self._since = [0.0] * count, [0.0] * count
        self._queue = list(range(count))  # of those that have not had their turn since the last tap

    def begin(self) -> None:
        """All are at a tap: who took longest is first."""
        with self._changed:
            self._queue = sorted(range(len(self._took)), key=lambda i: -self._took[i])

    def take(self, i: int) -> None:
        """Wait for the turn of run i."""
        with self._changed:
            self._changed.wait_for(lambda: self._free and (i not in self._queue or i in self._queue[: self._free]))
            self._free -= 1
            if i in self._queue:
                self._queue.remove(i)
            self._since[i] = time.perf_counter()
            self._changed.notify_all()  # who is next in the queue may be so now

    def disorder(self) -> None:
        """A run has failed, and may not come for its turn: no other waits for it."""
        with self._changed:
            self._queue = []
            self._changed.notify_all()

    def give(self, i: int) -> None:
        """Run i is at a tap, or ends."""
        with self._changed:
            self._free += 1
            self._took[i] += time.perf_counter() - self._since[i]
            self._changed.notify_all()

    @contextmanager
    def of(self, i: int) -> Iterator[None]:
        """The turn of run i, as long as the block lasts."""
        self.take(i)
        try:
            yield
        finally:
            self.give(i)


class _Walk:
    def __init__(self, count: int, meet: Meet, where: Callable[[int, str], bool], scope: Scope, turns: bool) -> None:
        self._meet, self._where, self._scope = meet, where, scope
        # No more compute at a time than there are cores: each may hold a large matrix widened to float64.
        self._turns = _Turns(count, 1 if turns else min(count, cores()))
        self._places: list[tuple[int, str] | None] = [None] * count
        self._values: list[Any] = [None] * count
        self._errors: list[BaseException] = []
        self._barrier = threading.Barrier(count, action=self._at_tap)

    def run(self, models: Sequence[Any], program: Program) -> None:
        threads = [
            threading.Thread(target=self._one, args=(i, model, program), daemon=True) for i, model in enumerate(models)
        ]
        # Each run gets its share of the cores: BLAS pools that fight for them made this twice as slow.
        with threadpool_limits(max(1, cores() // len(threads)), user_api="blas"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        # What is left must not hold the runs' values: the barrier knows this object, and an error knows the frames
        # that it came through, which know this object too. In circles they would stay until a collection.
        del self._barrier
        self._values.clear()
        if self._errors:
            del self._errors[1:]
            raise self._errors.pop()

    def _one(self, i: int, model: Any, program: Program) -> None:
        try:
            with self._scope(), self._turns.of(i):
                program(model, lambda call: Trace(lambda name, value: self._sink(i, call, name, value)))
                self._sink(i, -1, "end", None)
        except threading.BrokenBarrierError:
            pass  # another run failed and has recorded why
        except BaseException as error:
            self._fail(error)

    def _sink(self, i: int, call: int, name: str, value: Any) -> Any:
        if call >= 0 and not self._where(call, name):
            return value
        self._places[i], self._values[i] = (call, name), value
        self._turns.give(i)
        try:
            self._barrier.wait()
        finally:  # also where the walk is over: leaving `with` gives the turn back once more
            self._turns.take(i)
        value, self._values[i] = self._values[i], None
        return value

    def _at_tap(self) -> None:
        place = self._places[0]
        if place is None or any(other != place for other in self._places):
            self._errors.append(LockstepError(f"the runs are at different taps: {self._places}"))
            raise threading.BrokenBarrierError
        if place == (-1, "end"):
            return
        try:
            with self._scope():  # an error is kept here, so it would never pass through the thread's own
                self._values = list(self._meet(*place, self._values))
        except BaseException as error:
            self._errors.append(error)
            raise threading.BrokenBarrierError from error  # breaks the barrier; abort() here would wait for itself
        self._turns.begin()

    def _fail(self, error: BaseException) -> None:
        self._errors.append(error)
        self._turns.disorder()
        self._barrier.abort()


def _in_one_thread(models: Sequence[Any], turns: bool) -> bool:
    """Whether threads cost more than they bring: on a device, on one core, or where a product takes microseconds.

    It takes greenlet, without which there are threads.
    """
    if not taking_turns.POSSIBLE:
        return False
    configs = [getattr(model, "config", None) for model in models]
    small = all(c is not None and c.encoder.hidden_size * c.encoder.intermediate_size < SMALL for c in configs)
    return turns or small or cores() == 1
