"""What runs in a Dask worker: it does jobs in processes of its own, one for each of its threads, and answers in JSON.

A peer that dies takes such a process with it and never the worker, which says how it died. An answer is bytes: what a
client makes of it is checked, and no object comes from another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import t5g2ref
from conformance.errors import CheckpointError, PeerUnavailable, UsageError
from conformance.report.result import environment
from conformance.sweep.pool import LOOK, Worker, able_to_start
from conformance.sweep.task import Task
from t5g2ref.backend import BackendError

HERE = uuid.uuid4().hex  # of this process: a worker that is started again may have the address of the one that died
IDLE = 60.0  # seconds without a job, after which the client is taken for dead
_SAID: tuple[type[BaseException], ...] = (UsageError, CheckpointError, PeerUnavailable, BackendError, MemoryError)
SAID = {kind.__name__: kind for kind in (*_SAID, KeyboardInterrupt)}
"""Errors that are told in a line; any other comes with its traceback."""


def about() -> dict[str, Any]:
    """This process, and the versions that a client's have to be."""
    return {"here": HERE, "versions": versions()}


def versions() -> dict[str, str]:
    """The judge's versions, and a checksum of its source."""
    return environment() | {"source": _source()}


def _source() -> str:
    """A checksum of both packages' Python files, and of the checkpoints that come along."""
    total = hashlib.sha256()
    for root in (Path(t5g2ref.__file__).parent, Path(__file__).parents[1]):
        for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".json", ".safetensors")):
            total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


# In the Dask worker


@dataclass
class _Child:
    """A process of a run, with a timer that ends it when its client has gone."""

    worker: Worker
    folder: tempfile.TemporaryDirectory[str]
    busy: bool = True
    timer: threading.Timer | None = None

    def end(self) -> None:
        self.worker.end()
        self.folder.cleanup()


@dataclass
class _Children:
    """The processes of this worker, by run and number."""

    there: dict[tuple[str, int], _Child] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def taken(self, key: tuple[str, int], task: bytes) -> _Child | None:
        """The process of that number, which gets a job now; None where the run has ended."""
        with self.lock:
            if key[0] in self.ended:
                return None
            child = self.there.get(key)
            if child is None:
                able_to_start()
                folder = tempfile.TemporaryDirectory(prefix="conformance-")
                state = (_started, (task,), _worked, None)
                child = self.there[key] = _Child(Worker(0, 1, folder.name, state, daemon=True), folder)
            child.busy = True
            if child.timer is not None:
                child.timer.cancel()
            return child

    def left(self, key: tuple[str, int]) -> None:
        """Its job is done."""
        with self.lock:
            if (child := self.there.get(key)) is not None:
                child.busy, child.timer = False, threading.Timer(IDLE, self.end, (key,))
                child.timer.daemon = True
                child.timer.start()

    def end(self, key: tuple[str, int]) -> None:
        """End a process; of one that has a job, whoever waits for its answer cleans up."""
        with self.lock:
            child = self.there.get(key)
            if child is not None and not child.busy:
                del self.there[key]
        if child is not None:
            child.worker.stop() if child.busy else child.end()

    def forget(self, key: tuple[str, int]) -> None:
        with self.lock:
            self.there.pop(key).end()


_CHILDREN = _Children()


def answer(run: str, number: int, here: str, task: bytes, job: bytes) -> bytes:
    """Do a job in a process of the run: {"result": …}, {"error": …}, {"refused": …} where no process could begin,
    {"died": …} where it ended with the job, or {"moved": …} where another worker was meant, as JSON.

    Args:
        run, number: a run's mark, and which of its processes on this worker.
        here: the HERE that the job was given to; another one does not begin it.
        task, job: what `packed` made.
    """
    if here != HERE:
        return _json({"moved": HERE})
    key = (run, number)
    child = _CHILDREN.taken(key, task)
    if child is None:
        return _json({"died": "its run has ended"})
    child.worker.give(0, job)
    while not child.worker.pipe.poll(LOOK) and not child.worker.is_dead:
        pass
    try:
        refused, found = child.worker.answer()
    except EOFError:
        how = child.worker.died()
        _CHILDREN.forget(key)
        return _json({"died": how})
    if refused is not None:
        _CHILDREN.forget(key)
        return _json({"refused": _said(refused)})
    _CHILDREN.left(key)
    done: bytes = found
    return done


def end(run: str) -> None:
    """End the run's processes on this worker. It returns at once: it is called where Dask's own messages are read."""
    _CHILDREN.ended.add(run)
    for key in [key for key in list(_CHILDREN.there) if key[0] == run]:
        threading.Thread(target=_CHILDREN.end, args=(key,), daemon=True).start()


# In its process


def packed(task: Task) -> bytes:
    """What a process has to know of a task, and where its client looks for files and modules."""
    inner = pickle.dumps((task.start, task.given, task.work, task.last, task.plain))
    return pickle.dumps((os.getcwd(), sys.path, inner))


Began = tuple[Callable[[Any, Any], Any], Callable[[Any], Any] | None, Callable[[Any, Any], Any], Any]


def _started(packed: bytes) -> Began:
    """The state of a process. A client's folders count where this machine sees them too."""
    folder, places, inner = pickle.loads(packed)
    sys.path += [place for place in places if place not in sys.path and os.path.isdir(place)]
    if os.path.isdir(folder):
        os.chdir(folder)
    start, given, work, last, plain = pickle.loads(inner)
    return work, last, plain, start(*given)


def _worked(began: Began, given: bytes) -> bytes:
    work, last, plain, state = began
    job = pickle.loads(given)
    try:
        if job is None and last is None:
            raise TypeError("there is nothing to do at the end")
        return _json({"result": plain(job, last(state) if job is None and last else work(state, job))})
    except BaseException as error:
        error.add_note(traceback.format_exc())
        return _json({"error": _said(error)})


def _said(error: BaseException) -> list[str]:
    """An error's class and what it says: in a line, or with where it arose."""
    notes = getattr(error, "__notes__", []) if type(error).__name__ not in SAID else []
    return [type(error).__name__, "\n".join([str(error), *notes])]


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
