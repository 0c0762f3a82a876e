"""One try: an input is made and read in a process of its own, whose end, time and memory are seen from outside."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from fuzzing import child, lawful

ACCEPTED, REFUSED, TRACEBACK, HANG, MEMORY, FALSE = "accepted", "refused", "traceback", "hang", "memory", "false pass"
FOUND = (TRACEBACK, HANG, MEMORY, FALSE)
MIB = 1 << 20
MAKING = 60.0  # seconds for our own part


@dataclass(frozen=True)
class Limits:
    """Seconds for a try, and bytes that a refusal may take beside twice its files; `net` is where allocation ends."""

    seconds: float = 10.0
    room: int = 100 * MIB
    net: int = 3072 * MIB


@dataclass(frozen=True)
class Kind:
    """A class of inputs.

    Args:
        weight: its share of the tries.
        base: writes sound files into a folder, once for a campaign.
        spoil: makes an input of them: (generator, base, folder).
        read: (folder, base) → what was read. Raises what the reader raises, or Refused for a command.
        refusals: errors that are refusals.
        verify: (what was read, folder, base); raises FalsePass. Its time and memory do not count.
    """

    name: str
    weight: int
    base: Callable[[Path], None]
    spoil: Callable[[Random, Path, Path], None]
    read: Callable[[Path, Path], Any]
    refusals: tuple[type[BaseException], ...]
    verify: Callable[[Any, Path, Path], None] = lambda value, folder, base: None


@dataclass(frozen=True)
class Outcome:
    """How a try ended, in seconds and bytes above the idle process; `size` is that of its files."""

    end: str
    text: str = ""
    seconds: float = 0.0
    peak: int = 0
    size: int = 0


def attempt(kind: Kind, number: int, base: Path, folder: Path, limits: Limits) -> Outcome:
    """The try of this number. What it says to its streams is in `folder.said`; its input stays in `folder`."""
    out, into = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, where somebody has started some
        pid = os.fork()
    if pid == 0:
        os.close(out)
        _child(kind, number, base, folder, limits, into)
    os.close(into)
    try:
        answer, late = _answer(out, limits.seconds)
    finally:
        os.close(out)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if late:
        return Outcome(HANG, f"no end within {limits.seconds:g} s", limits.seconds, 0, child.size(folder))
    if not answer:
        return Outcome(TRACEBACK, f"the process ended, wait status {status}", 0.0, 0, child.size(folder))
    return _weighed(Outcome(**json.loads(answer)), limits)


def _weighed(outcome: Outcome, limits: Limits) -> Outcome:
    """The outcome, unless it took too long, or too much for a refusal."""
    said = {**asdict(outcome)}
    if outcome.end in FOUND:
        return outcome
    if outcome.seconds > limits.seconds:
        return Outcome(**said | {"end": HANG, "text": f"{outcome.seconds:.1f} s: {outcome.text}"})
    if outcome.end == REFUSED and outcome.peak > limits.room + 2 * outcome.size:
        text = f"{outcome.peak / MIB:.0f} MiB for files of {outcome.size / MIB:.2f}: {outcome.text}"
        return Outcome(**said | {"end": MEMORY, "text": text})
    return outcome


def _answer(out: int, seconds: float) -> tuple[bytes, bool]:
    """What the child wrote after its first byte, which says that the input is made; and whether it is late."""
    data, deadline = b"", time.monotonic() + MAKING
    while True:
        ready, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return b"", bool(data)
        more = os.read(out, 1 << 16)
        if not data and more:
            deadline = time.monotonic() + seconds
        data += more
        if not more:
            return data[1:], False


def _child(kind: Kind, number: int, base: Path, folder: Path, limits: Limits, into: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        child.apart(folder)
        kind.spoil(Random(f"{kind.name}:{number}"), base, folder)
        idle, size = child.idle(limits.net), child.size(folder)
        os.write(into, b".")
        began = time.perf_counter()
        end, text, value = _read(kind, folder, base)
        seconds, peak = time.perf_counter() - began, child.peak() - idle
        if end == ACCEPTED:
            end, text = _verified(kind, value, folder, base)
        os.write(into, json.dumps(asdict(Outcome(end, text[:4000], seconds, max(0, peak), size))).encode())
    except BaseException:
        text = f"the tool itself failed:\n{traceback.format_exc()}"
        os.write(into, b"." + json.dumps(asdict(Outcome(TRACEBACK, text))).encode())
    finally:
        os._exit(0)


def _read(kind: Kind, folder: Path, base: Path) -> tuple[str, str, Any]:
    """(end, text, what was read)."""
    try:
        return ACCEPTED, "", kind.read(folder, base)
    except (*kind.refusals, lawful.Refused) as error:
        text = str(error)
        if wrong := lawful.fault(text):
            return TRACEBACK, f"{type(error).__name__}: {wrong}: {text[:1500]!r}", None
        return REFUSED, text, None
    except lawful.Unlawful as error:
        return TRACEBACK, str(error), None
    except BaseException:
        return TRACEBACK, traceback.format_exc(limit=-4), None


def _verified(kind: Kind, value: Any, folder: Path, base: Path) -> tuple[str, str]:
    try:
        kind.verify(value, folder, base)
    except lawful.FalsePass as error:
        return FALSE, str(error)
    except lawful.Unlawful as error:
        return TRACEBACK, str(error)
    return ACCEPTED, ""
