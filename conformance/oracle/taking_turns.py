"""Several runs of the reference in one thread, which meet at every tap: what `side_by_side` does on one core, for a
small model and on a device. Handing on between threads takes as long there as the work from one tap to the next.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from t5g2ref.trace import Trace

try:
    from greenlet import greenlet
except ImportError:  # it only saves time
    greenlet = None
POSSIBLE = greenlet is not None

END = (-1, "end")
Place = tuple[int, str]
Asked = tuple[Place, Any]
"""Where a run waits, and its value there."""


class LockstepError(RuntimeError):
    """The runs did not visit the same taps in the same order: an error of this suite, never of a peer."""


def walk(
    models: Sequence[Any],
    program: Callable[[Any, Callable[[int], Trace]], None],
    meet: Callable[[int, str, list[Any]], list[Any]],
    where: Callable[[int, str], bool],
    scope: Callable[[], AbstractContextManager[object]],
) -> None:
    """See `side_by_side.walk`. All are inside one scope, which is the thread's."""
    with scope():
        _walk([_run(model, program, where) for model in models], meet, scope)


def _walk(
    runs: Sequence[greenlet],
    meet: Callable[[int, str, list[Any]], list[Any]],
    scope: Callable[[], AbstractContextManager[object]],
) -> None:
    try:
        asked: list[Asked] = [run.switch() for run in runs]
        while asked[0][0] != END:
            (call, name), _ = asked[0]
            _same(asked)
            with scope():
                values = list(meet(call, name, [value for _, value in asked]))
            asked = [run.switch(value) for run, value in zip(runs, values, strict=True)]
        _same(asked)
    finally:
        for run in runs:  # what is not at its end leaves its blocks
            if not run.dead:
                run.throw()


def _run(
    model: Any, program: Callable[[Any, Callable[[int], Trace]], None], where: Callable[[int, str], bool]
) -> greenlet:
    """One run, which hands over its value at each tap and goes on with what it is given."""
    leader = greenlet.getcurrent()

    def sink(call: int, name: str, value: Any) -> Any:
        return leader.switch(((call, name), value)) if where(call, name) else value

    def whole() -> Asked:
        program(model, lambda call: Trace(lambda name, value: sink(call, name, value)))
        return END, None

    made = greenlet(whole)
    made.gr_context = contextvars.copy_context()  # as a thread would have its own
    return made


def _same(asked: Sequence[Asked]) -> None:
    places = [place for place, _ in asked]
    if any(place != places[0] for place in places):
        raise LockstepError(f"the runs are at different taps: {places}")
