"""Several runs of the reference, side by side, that meet at every tap.

Truth and control walk the same program under different numerics. At each tap all wait for each other, one function
sees all their values, and says what each goes on with. So no run's activations are ever stored: at any moment one
tap is held, whatever the size of the model.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from threadpoolctl import threadpool_limits

from t5g2ref.trace import Trace

Meet = Callable[[int, str, list[Any]], list[Any]]
Program = Callable[[Any, Callable[[int], Trace]], None]


class LockstepError(RuntimeError):
    """The runs did not visit the same taps in the same order: a fault of this suite, never of a peer."""


def walk(models: Sequence[Any], program: Program, meet: Meet) -> None:
    """Run `program(model, trace_of_call)` for every model, each in its thread; `meet(call, name, values)` is called
    once at every tap and returns one value a model. The first error of any of them is raised here."""
    _Walk(len(models), meet).run(models, program)


class _Walk:
    def __init__(self, count: int, meet: Meet) -> None:
        self._meet = meet
        self._places: list[tuple[int, str] | None] = [None] * count
        self._values: list[Any] = [None] * count
        self._errors: list[BaseException] = []
        self._barrier = threading.Barrier(count, action=self._at_tap)

    def run(self, models: Sequence[Any], program: Program) -> None:
        threads = [
            threading.Thread(target=self._one, args=(i, model, program), daemon=True) for i, model in enumerate(models)
        ]
        # Each run gets its share of the cores: BLAS pools that fight for them made this twice as slow.
        with threadpool_limits(max(1, (os.cpu_count() or 1) // len(threads)), user_api="blas"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]

    def _one(self, i: int, model: Any, program: Program) -> None:
        try:
            program(model, lambda call: Trace(lambda name, value: self._sink(i, call, name, value)))
            self._sink(i, -1, "end", None)
        except threading.BrokenBarrierError:
            pass  # another run failed and has recorded why
        except BaseException as error:
            self._fail(error)

    def _sink(self, i: int, call: int, name: str, value: Any) -> Any:
        self._places[i], self._values[i] = (call, name), value
        self._barrier.wait()
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
            self._values = list(self._meet(*place, self._values))
        except BaseException as error:
            self._errors.append(error)
            raise threading.BrokenBarrierError from error  # breaks the barrier; abort() here would wait for itself

    def _fail(self, error: BaseException) -> None:
        self._errors.append(error)
        self._barrier.abort()
