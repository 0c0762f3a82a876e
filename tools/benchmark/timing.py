"""How the benchmark takes time and memory: interleaved repeats on the host's clock, and what one call allocates."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from t5g2ref.backend import Backend

Array = Any
SECONDS = 4.0  # of timed calls that an item gets, all sides together, unless its least number needs more
MOST = 50
SETTLE = 0.03  # on a CPU: the threads of all libraries spin for some ms after their work, on the same cores


class Cannot(Exception):
    """A side has no such item. The message says what it lacks, or where it has it."""


@dataclass(frozen=True)
class Work:
    """One side's share of an item.

    Args:
        run: what is timed; its argument is what `prepare` made. A `Clocked` result has times of its own.
        sample: numbers of a result, float64 on the host, to be held against another side's.
        prepare: makes the argument, outside the timing.
        check: what gives the result for `sample`, where `run` may turn another way on another side; else `run`.
        warmups: runs before it is timed, beside the trials.
        note: in what the item is another one here; "" where it is the same.
        alike: makes of another side's numbers those that this one shows, where it shows others.
    """

    run: Callable[[Any], Any]
    sample: Callable[[Any], np.ndarray[Any, Any]]
    prepare: Callable[[], Any] = lambda: None
    check: Callable[[Any], Any] | None = None
    warmups: int = 0
    note: str = ""
    alike: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda sample: sample


@dataclass(frozen=True)
class Clocked:
    """The seconds and CPU seconds of a part of a run, where a library cannot be asked for that part alone."""

    seconds: float
    cpu: float


@dataclass(frozen=True)
class Trial:
    """One untimed run: its numbers, the memory it took beyond what was held (None: not known), its seconds."""

    sample: np.ndarray[Any, Any]
    memory: int | None
    seconds: float


class Meter(Protocol):
    """Memory that a call allocates beyond what is held when it starts."""

    def start(self) -> None:
        """Give back what is cached and set the mark."""

    def read(self) -> int | None:
        """Bytes above the mark at the highest since; None where this cannot be known."""


def on_cpu(backend: Backend) -> bool:
    """Whether the backend's arrays are NumPy's own."""
    return backend.xp is np


def waiter(backend: Any) -> Callable[[], None]:
    """A call that returns when the whole device is idle, all libraries' streams. A CPU has nothing to wait for."""
    if on_cpu(backend):
        return lambda: None

    def wait() -> None:
        with backend.scope():
            backend.xp.cuda.Device().synchronize()

    return wait


@dataclass(frozen=True)
class Taken:
    """What each repeat took: seconds on the clock, and seconds of all cores together, those of waiting threads too."""

    seconds: list[float]
    cpu: list[float]


def interleaved(works: Sequence[Work], wait: Callable[[], None], repeats: int, settle: float) -> list[Taken]:
    """`repeats` runs of each work, taken in turn (A B C A B C …), the device idle before and after each.

    Before a timed run the same work runs untimed for `settle` seconds, so that it meets its own threads awake and the
    others' at rest. A pause instead would also let its own fall asleep, and the caches go cold.
    """
    sides = [Taken([], []) for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, sides, strict=True):
            settled = time.perf_counter() + settle
            while time.perf_counter() < settled:
                work.run(work.prepare())
            seconds, cpu = _timed(work, wait)
            taken.seconds.append(seconds)
            taken.cpu.append(cpu)
    return sides


def _timed(work: Work, wait: Callable[[], None]) -> tuple[float, float]:
    """Seconds and CPU seconds of one run. Its result is gone before the next begins: a loaded model can be half of what
    fits."""
    given = work.prepare()
    wait()
    began, spent = time.perf_counter(), time.process_time()
    result = work.run(given)  # kept until the clocks are read, so that freeing it is not timed
    wait()
    taken = time.perf_counter() - began, time.process_time() - spent
    if isinstance(result, Clocked):
        taken = result.seconds, result.cpu
    del result
    return taken


class Others:
    """How much of the machine's cores other processes take, from when this is made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._began = self._ticks()

    def share(self) -> float | None:
        """Of all cores, from 0 to 1; None where the system does not say, and where no time has passed."""
        now = self._ticks()
        if now is None or self._began is None or now[1] <= self._began[1]:
            return None
        used, passed, own = (after - before for after, before in zip(now, self._began, strict=True))
        return min(1.0, max(0.0, used - own) / passed)

    def _ticks(self) -> tuple[float, float, float] | None:
        """Ticks that all cores worked, that passed on all of them, and that this process worked, its children too."""
        try:
            fields = [int(field) for field in self._stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        idle, own = sum(fields[3:5]), os.times()
        return sum(fields) - idle, sum(fields), sum(own[:4]) * os.sysconf("SC_CLK_TCK")


def tried(work: Work, meter: Meter, wait: Callable[[], None], *, checked: bool = True) -> Trial:
    """One run for its numbers and its memory; it also warms up. Unchecked it is the run that will be timed, without
    numbers."""
    given, call = work.prepare(), (work.check or work.run) if checked else work.run
    wait()
    meter.start()
    began = time.perf_counter()
    result = call(given)
    wait()
    seconds, memory = time.perf_counter() - began, meter.read()
    return Trial(work.sample(result) if checked else np.empty(0), memory, seconds)


def fitting(seconds: float, asked: int | None, least: int) -> int:
    """Repeats: as asked, or as many rounds of `seconds` as fit into SECONDS, between `least` and MOST."""
    return asked if asked is not None else max(least, min(MOST, int(SECONDS / max(seconds, 1e-9))))


def distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """‖a − b‖ / ‖b‖; NaN where either has one, and where the shapes differ."""
    if a.shape != b.shape:
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):  # infinities subtract to a NaN, which is the answer then
        return float(np.linalg.norm((a - b).ravel()) / np.linalg.norm(b.ravel()))


class PoolMeter:
    """CuPy: what the backend's pool holds (its total only grows until blocks are given back) above what was in use."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._mark = 0

    def start(self) -> None:
        gc.collect()
        with self._backend.scope():  # a pool answers for the current device
            self._backend.pool.free_all_blocks()
            self._mark = self._backend.pool.used_bytes()

    def read(self) -> int:
        with self._backend.scope():
            return int(self._backend.pool.total_bytes() - self._mark)


class ResidentMeter:
    """A CPU: the process's peak resident set, which Linux can be asked to forget; what a library keeps from earlier
    calls and uses again is not seen, so freed memory is first given back where the C library can do that."""

    def __init__(self) -> None:
        self._mark: int | None = None

    def start(self) -> None:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._mark = _status("VmRSS")
        except OSError:
            self._mark = None

    def read(self) -> int | None:
        return None if self._mark is None else max(0, _status("VmHWM") - self._mark)


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
