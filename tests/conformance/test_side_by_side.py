"""Runs side by side: they meet at every tap, go on with what they are given, and never hang."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from conformance.oracle import side_by_side as lockstep
from conformance.oracle.side_by_side import LockstepError
from t5g2ref.trace import Trace

SECONDS = 20  # far above what these take; a hang fails here and not in the runner


@pytest.fixture(params=["together", "in turns", "in one thread"])
def walk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The ways of sharing the time: all runs at once, one at a time, and all in one thread."""
    monkeypatch.setattr(lockstep, "_in_one_thread", lambda models, turns: request.param == "in one thread")
    return partial(lockstep.walk, turns=request.param == "in turns")


def within(call: Callable[[], Any]) -> Any:
    """The call's result or its error, in a thread of its own: a hang is a failure."""
    outcome: dict[str, Any] = {}

    def body() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=body, daemon=True)
    before = threading.active_count()
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), f"still running after {SECONDS} s"
    assert threading.active_count() <= before, "a run was left behind"
    if "error" in outcome:
        raise outcome["error"]
    return outcome.get("value")


def script(model: Any, trace_of: Callable[[int], Any]) -> None:
    """Visit the model's own list of (call, name); its value starts at `start` and is doubled at every tap."""
    value = model["start"]
    for call, name in model["taps"]:
        if name == "raise":
            raise ZeroDivisionError(f"from the model that starts at {value}")
        value = trace_of(call)(name, value) * 2
    model["end"] = value


def made(start: int, *taps: str) -> dict[str, Any]:
    return {"start": start, "taps": [(i // 2, name) for i, name in enumerate(taps)]}


def same(call: int, name: str, values: list[Any]) -> list[Any]:
    return values


def test_meets_once_at_every_tap_in_order(walk: Any) -> None:
    models = [made(start, "a", "b", "c") for start in (1, 10, 100)]
    met: list[Any] = []

    def meet(call: int, name: str, values: list[Any]) -> list[Any]:
        met.append((call, name, list(values)))
        return values

    within(lambda: walk(models, script, meet))
    assert met == [(0, "a", [1, 10, 100]), (0, "b", [2, 20, 200]), (1, "c", [4, 40, 400])]
    assert [m["end"] for m in models] == [8, 80, 800]


def test_replacements_reach_their_models(walk: Any) -> None:
    models = [made(start, "a", "b") for start in (1, 10, 100)]

    def meet(call: int, name: str, values: list[Any]) -> list[Any]:
        return [7, 8, 9] if name == "a" else values

    within(lambda: walk(models, script, meet))
    assert [m["end"] for m in models] == [7 * 4, 8 * 4, 9 * 4]


def test_many_taps_never_mix_the_values(walk: Any) -> None:
    """The fast run may be at its next tap before the slow one has taken its value."""
    models = [made(start, *(f"t{i}" for i in range(300))) for start in range(4)]
    seen: list[Any] = []

    def meet(call: int, name: str, values: list[Any]) -> list[Any]:
        seen.append(list(values))
        return [i for i, _ in enumerate(values)]

    within(lambda: walk(models, script, meet))
    assert seen[0] == [0, 1, 2, 3]
    assert all(values == [0, 2, 4, 6] for values in seen[1:])


def test_prefixes_are_part_of_the_name(walk: Any) -> None:
    met: list[str] = []

    def program(model: Any, trace_of: Callable[[int], Any]) -> None:
        trace_of(0).at("layers.3")("mlp", model)

    within(lambda: walk([1, 2], program, lambda call, name, values: met.append(name) or values))
    assert met == ["layers.3.mlp"]


def test_one_model_alone(walk: Any) -> None:
    model = made(3, "a")
    within(lambda: walk([model], script, same))
    assert model["end"] == 6


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("taps", [("raise",), ("a", "raise"), ("a", "b", "raise")])
def test_error_in_one_model_is_raised(which: int, taps: tuple[str, ...], walk: Any) -> None:
    models = [made(start, "a", "b", "c") for start in range(3)]
    models[which] = made(5, *taps)
    with pytest.raises(ZeroDivisionError, match="from the model that starts at"):
        within(lambda: walk(models, script, same))


@pytest.mark.parametrize("error", [ValueError("in meet"), KeyboardInterrupt(), SystemExit(4)])
def test_error_in_meet_is_raised(error: BaseException, walk: Any) -> None:
    def meet(call: int, name: str, values: list[Any]) -> list[Any]:
        if name == "b":
            raise error
        return values

    with pytest.raises(type(error)) as caught:
        within(lambda: walk([made(1, "a", "b", "c"), made(2, "a", "b", "c")], script, meet))
    assert caught.value is error


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a", "b"), ("a", "c")),
        (("a", "b"), ("b", "a")),
        (("a",), ("a", "b")),  # one is at its end while the other still has something to show
        (("a", "b"), ("a",)),
        ((), ("a",)),
        (("a", "a"), ("a", "a", "a")),  # the same name in another call
    ],
)
def test_different_taps_are_an_error_of_ours(first: tuple[str, ...], second: tuple[str, ...], walk: Any) -> None:
    with pytest.raises(LockstepError, match="the runs are at different taps"):
        within(lambda: walk([made(1, *first), made(2, *second)], script, same))


def test_too_few_values_from_meet_do_not_hang(walk: Any) -> None:
    with pytest.raises((IndexError, ValueError)):
        within(lambda: walk([made(1, "a", "b"), made(2, "a", "b")], script, lambda call, name, values: values[:1]))


def test_every_run_and_every_meeting_is_in_a_scope(walk: Any) -> None:
    """What a device library knows of a thread, it must be told in each of them; leaving is part of it."""
    local, left = threading.local(), []

    @contextmanager
    def scope() -> Iterator[None]:
        local.depth = getattr(local, "depth", 0) + 1
        yield
        local.depth -= 1
        if not local.depth:
            left.append(threading.get_ident())

    def program(model: Any, trace_of: Callable[[int], Any]) -> None:
        for _ in range(3):
            assert local.depth == 1
            trace_of(0)("a", model)

    def meet(call: int, name: str, values: list[Any]) -> list[Any]:
        assert local.depth == 2
        return values

    within(lambda: walk([1, 2, 3], program, meet, scope=scope))
    threads = 1 if lockstep._in_one_thread([], False) else 3
    assert len(set(left)) == len(left) == threads


class Full(MemoryError):
    """A device library's own error."""


class PlainWords(RuntimeError):
    """What its scope makes of it."""


@contextmanager
def translating() -> Iterator[None]:
    try:
        yield
    except Full as error:
        raise PlainWords("close what else holds the memory") from error


@pytest.mark.parametrize("where", ["in a meeting", "in a run"])
def test_a_scope_translates_the_errors_inside_it(where: str, walk: Any) -> None:
    def full(*_: Any) -> Any:
        raise Full

    program, meet = (script, full) if where == "in a meeting" else (full, same)
    with pytest.raises(PlainWords, match="close what else") as caught:
        within(lambda: walk([made(1, "a", "b"), made(2, "a", "b")], program, meet, scope=translating))
    assert isinstance(caught.value.__cause__, Full)


class Activation:
    """A large value, as far as a test needs one."""


@pytest.mark.parametrize("fails", ["", "in a run", "in a meeting", "at different taps"])
def test_nothing_of_the_runs_is_left(fails: str, walk: Any) -> None:
    """Once the error is dealt with the values are gone: a device's memory cannot wait for a collection."""
    alive: list[weakref.ref[Any]] = []

    def program(model: int, trace_of: Callable[[int], Any]) -> None:
        for name in ("a", "b" if model or fails != "at different taps" else "c", "d"):
            value = Activation()
            alive.append(weakref.ref(value))
            value = trace_of(0)(name, value)
            if name == "b" and model and fails == "in a run":
                raise ZeroDivisionError

    def meet(call: int, name: str, values: list[Any]) -> list[Any]:
        if name == "b" and fails == "in a meeting":
            raise ZeroDivisionError
        return values

    def once() -> str:
        try:
            walk([0, 1, 2], program, meet)
        except (ZeroDivisionError, LockstepError) as error:
            return type(error).__name__
        return ""

    was = gc.isenabled()
    gc.disable()
    try:
        assert bool(within(once)) == bool(fails)
        assert len(alive) >= 6
        assert not [value for value in alive if value() is not None]
    finally:
        if was:
            gc.enable()


def test_in_turns_one_computes_at_a_time() -> None:
    busy, most = [0], [0]

    def program(model: Any, trace_of: Callable[[int], Any]) -> None:
        for _ in range(50):
            busy[0] += 1
            most[0] = max(most[0], busy[0])
            threading.Event().wait(1e-4)  # leaves the interpreter to others, as a launch does
            busy[0] -= 1
            trace_of(0)("a", model)

    within(lambda: lockstep.walk([1, 2, 3], program, same, turns=True))
    assert most == [1]


@pytest.mark.parametrize("possible", [True, False])
def test_on_a_device_all_are_in_one_thread_where_that_can_be(possible: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep.taking_turns, "POSSIBLE", possible)
    monkeypatch.setattr(lockstep, "cores", lambda: 2)
    large = object()  # it has no config that says that it is small
    assert lockstep._in_one_thread([large], True) == possible
    assert not lockstep._in_one_thread([large], False)


def test_runs_meet_only_where_they_are_asked_to(walk: Any) -> None:
    met: list[tuple[int, str]] = []

    def meet(call: int, name: str, values: list[float]) -> list[float]:
        met.append((call, name))
        return values

    taps = [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    models = [{"start": start, "taps": taps} for start in (1.0, 3.0)]
    within(lambda: walk(models, script, meet, where=lambda call, name: (call, name) in ((0, "b"), (1, "a"))))
    assert met == [(0, "b"), (1, "a")]


def test_no_more_compute_at_a_time_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may hold a large temporary array: eight runs on two cores need the memory of two."""
    monkeypatch.setattr(lockstep, "cores", lambda: 2)
    now, most, guard = 0, 0, threading.Lock()

    def program(model: Any, trace_of: Callable[[int], Trace]) -> None:
        nonlocal now, most
        for step in range(5):
            with guard:
                now += 1
                most = max(most, now)
            time.sleep(0.002)
            with guard:
                now -= 1
            trace_of(0)(f"tap{step}", model)

    met: list[str] = []
    lockstep.walk(range(8), program, lambda call, name, values: met.append(name) or values)
    assert most <= 2
    assert met == [f"tap{step}" for step in range(5)]


def test_who_took_longest_is_first_after_a_tap() -> None:
    turns = lockstep._Turns(3, 1)
    order: list[int] = []

    def run(i: int, seconds: float) -> None:
        with turns.of(i):
            order.append(i)
            time.sleep(seconds)

    def together(*seconds: float) -> None:
        threads = [threading.Thread(target=run, args=pair) for pair in enumerate(seconds)]
        for thread in reversed(threads):
            thread.start()
        for thread in threads:
            thread.join(SECONDS)

    within(lambda: together(0.01, 0.02, 0.2))
    assert order == [0, 1, 2], "in the order of the runs until something is known"
    turns.begin()
    within(lambda: together(0.3, 0.0, 0.0))
    assert order[3:] == [2, 1, 0]
    turns.begin()
    within(lambda: together(0.0, 0.0, 0.0))
    assert order[6:] == [0, 2, 1]


def test_nobody_waits_for_a_run_that_failed_before_its_turn() -> None:
    turns = lockstep._Turns(2, 1)
    turns.disorder()
    within(lambda: turns.take(1))
