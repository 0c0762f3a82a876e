"""Weights that the processes of a run share: the same bits, once in memory, and nothing left of them afterwards."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs rich: the progress bar is made with it")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from command_line import process, strictly
from dumping import tiny
from processes import ROOT

from conformance.checkpoints import resolve
from conformance.report.terms import Asked, Terms, work
from conformance.sweep.engine import Engine
from conformance.sweep.lent import ALIGNED, Lent, borrowed, lending
from conformance.sweep.pool import done
from conformance.sweep.task import Task
from conformance.sweep.workers import Answer, Question, judged
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import NUMPY, Backend, BackendError, arena
from t5g2ref.dtypes import DType

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create, which Linux has")
HALVES: tuple[DType, ...] = ("bfloat16", "float16")
OURS, HALF_OURS = "t5g2ref:numpy:float32", "t5g2ref:numpy:bfloat16"
FEW = (f"--ckpt={bundled('tiny')}", "--synthetic", f"--peer={OURS}", f"--peer={HALF_OURS}", "--case=short")
FEW = (*FEW, "--case=window", "--no-progress")
ONE_CORE = "import os, sys\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
NO_MEMORY = "import os, sys\ndel os.memfd_create"


@pytest.fixture
def target() -> Iterator[Target]:
    """Seeded weights. A half of them is on no half type's grid, the others are on bfloat16's."""
    (made,) = resolve(str(bundled("tiny")), synthetic=True)
    weights: Any = made.weights
    for name in [*weights][::2]:
        weights[name] = weights[name] * np.float32(1.0009)
    yield made
    weights.clear()  # whatever still has the target
    made._rounded.clear()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    folders = [Path("/dev/shm"), Path(tempfile.gettempdir())]
    before = [_ours(folder) for folder in folders]
    yield
    gc.collect()
    assert not _open(), "an arena is open"
    if "PYTEST_XDIST_WORKER" not in os.environ:  # where others work beside
        assert [_ours(folder) for folder in folders] == before


def _ours(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(("conformance", "t5g2ref", "psm_"))}


def _open() -> list[str]:
    """The arenas that this process has open."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(path))
    return [name for name in found if "t5g2ref" in name and "memfd" in name]


def _bits(target: Target, dtype: DType) -> str:
    total = hashlib.sha256()
    for name, value in sorted(target.rounded(dtype).items()):
        total.update(f"{name} {value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    return total.hexdigest()


def _looked(target: Target, job: str) -> tuple[int, str, str]:
    """In a process: its id, the bits of the weights in a type, and what came of writing them."""
    kind, _, mark = job.partition(" ")
    if mark and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    said = ""
    try:
        next(iter(target.rounded(kind).values()))[...] = 0  # type: ignore[arg-type]
    except ValueError as error:
        said = str(error)
    return os.getpid(), _bits(target, kind), said  # type: ignore[arg-type]


def _borrowed(lent: Lent) -> Target:
    return borrowed(lent, NUMPY)


@pytest.mark.parametrize("killed", [False, True])
def test_processes_see_the_same_bits_and_cannot_write_them(target: Target, tmp_path: Path, killed: bool) -> None:
    """A process that takes a dead one's place borrows anew."""
    expected = {dtype: _bits(target, dtype) for dtype in ("float32", *HALVES)}
    marks = [f" {tmp_path / str(n)}" if killed else "" for n in range(6)]
    jobs = [f"{dtype}{mark}" for dtype, mark in zip([*expected] * 2, marks, strict=True)]
    with lending([target], HALVES) as loan:
        assert loan.why == ""
        found = dict(done(Task(_borrowed, loan.lent, _looked), jobs, 2))
        assert {dtype: _bits(target, dtype) for dtype in expected} == expected  # type: ignore[arg-type]
    assert {job: bits for job, (_, bits, _) in found.items()} == {job: expected[job.split()[0]] for job in jobs}  # type: ignore[index]
    assert {said for _, _, said in found.values()} == {"assignment destination is read-only"}
    assert os.getpid() not in {pid for pid, _, _ in found.values()}


def test_there_is_no_second_copy(target: Target) -> None:
    """Broken by weights that stay where they were, and by one that is stored again for a type whose grid it is on."""
    before = [weakref.ref(value) for value in target.weights.values()]
    with lending([target], HALVES) as loan:
        gc.collect()
        assert not any(value() is not None for value in before)
        (lent,) = loan.lent
        other = borrowed(replace(lent, key=arena.HostKey(lent.key.file, lent.key.size)), NUMPY)
        on_grid = [name for name, place in lent.weights.items() if lent.rounded["bfloat16"][name] == place]
        assert 0 < len(on_grid) < len(lent.weights)
        assert [n for n in other.weights if other.weights[n] is other.rounded("bfloat16")[n]] == on_grid
        places = [place for places in (lent.weights, *lent.rounded.values()) for place in places.values()]
        assert all(place.start % ALIGNED == 0 for place in places)
        ends = sorted(
            {(place.start, place.start + place.array(np.empty(lent.key.size, np.uint8)).nbytes) for place in places}
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(ends)), "tensors overlap"


def test_what_is_written_past_numpy_stays_in_its_process(target: Target) -> None:
    """A port may hold the weights in a library that knows no read-only memory; it neither dies nor changes ours."""
    with lending([target], ()) as loan:
        value = next(iter(borrowed(loan.lent[0], NUMPY).weights.values()))
        value.flags.writeable = True
        value[...] = 7
        assert not (next(iter(target.weights.values())) == 7).all()


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nobody_opens_it_after_the_block(target: Target, error: type[BaseException] | None) -> None:
    made: list[arena.HostArena] = []
    with suppress(ValueError, KeyboardInterrupt), lending([target], HALVES) as loan:
        key = loan.lent[0].key
        made += [one for one in gc.get_objects() if isinstance(one, arena.HostArena)]
        if error is not None:
            raise error
    assert made
    assert all(one._file.closed and one.bytes is None for one in made)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(key.file)
    assert next(iter(target.weights.values())).any(), "this process goes on with the weights"


KILLED = """
import os, signal, sys, time
sys.path[:0] = [{tests!r}, {support!r}]
import test_lent
from conformance.sweep.lent import lending
from conformance.sweep.pool import done
from conformance.sweep.task import Task

if __name__ == "__main__":
    with lending(test_lent.resolve({ckpt!r}, synthetic=True), ("bfloat16",)) as loan:
        file = os.fstat(loan.lent[0].key.file).st_ino
        for _, pid in done(Task(test_lent._borrowed, loan.lent, test_lent._waiting), ["a", "b"], 2):
            print(file, pid, flush=True)
"""


def _waiting(target: Target, job: str) -> int:
    time.sleep(0.0 if job == "a" else 60.0)
    return os.getpid()


def test_a_parent_that_is_killed_leaves_no_memory(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    here = Path(__file__).parent
    program.write_text(KILLED.format(tests=str(here), support=str(here.parent / "support"), ckpt=str(bundled("tiny"))))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    file, _ = parent.stdout.readline().split()
    assert _mapped(file), "nobody had it"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _mapped(file) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _mapped(file)


def _mapped(file: str) -> list[str]:
    """The processes that have the arena of this inode in memory."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            found += [
                maps.parent.name
                for line in maps.read_text().splitlines()
                if "memfd:t5g2ref" in line and f" {file} " in line
            ][:1]
    return found


def test_streamed_weights_are_not_lent() -> None:
    (target,) = resolve(str(bundled("tiny")), synthetic=True, stream=True)
    with lending([target], HALVES) as loan:
        assert loan == ((), "")


def test_without_such_memory_each_makes_its_own(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _bits(target, "bfloat16")
    monkeypatch.delattr(os, "memfd_create")
    with lending([target], HALVES) as loan:
        assert not loan.lent
        assert "this system has no memfd_create" in loan.why
    assert _bits(target, "bfloat16") == expected


# A run


def _report(path: Path, *options: str, code: str = "") -> Any:
    ran = process(*FEW, *options, "--json", str(path), code=code)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    return _plain(strictly(path))


def _plain(part: Any) -> Any:
    """A report without what no two runs agree on."""
    if isinstance(part, dict):
        return {k: _plain(v) for k, v in part.items() if k not in ("seconds", "peak_bytes", "command")}
    return [_plain(one) for one in part] if isinstance(part, list) else part


def test_a_run_that_shares_reports_what_one_process_does(tmp_path: Path) -> None:
    two, alone = (tmp_path / "two.json", tmp_path / "alone.json")
    shared = _report(two, "--jobs=2")
    assert shared == _report(alone, "--jobs=1", code=ONE_CORE), "on as many cores as each of the two had"
    not_shared = _report(tmp_path / "not.json", "--jobs=2", code=NO_MEMORY)
    assert [note for note in not_shared["notes"] if note not in shared["notes"]] == [
        "each process made the weights again: there is no memory that processes share: this system has no memfd_create"
    ]
    assert not_shared["judgements"] == shared["judgements"]


def _asked(lent: Callable[[Lent], Lent], target: Target) -> list[Answer]:
    terms = Terms(
        peers=(Asked(OURS, "float32", OURS),),
        environment={},
        ckpt=str(bundled("tiny")),
        synthetic=True,
        cases=("short",),
        exact=False,
    )
    told: list[Answer] = []
    with lending([target], ()) as loan:
        question = Question(terms, {OURS: OURS}, (target.name,), "numpy", 7.0, lent=tuple(map(lent, loan.lent)))
        asked = work(terms, [target])
        judged(question, asked, asked.every, Engine(2), lambda _, answer: told.append(answer))
    return told


def test_a_process_that_cannot_open_it_makes_them_again_and_says_so(target: Target) -> None:
    read, write = os.pipe()
    try:
        told = _asked(lambda lent: replace(lent, key=arena.HostKey(read, 4096)), target)
    finally:
        os.close(read)
        os.close(write)
    assert all(judgement.passed for answer in told for judgement in answer.judgements)
    (note,) = [n for n in told[-1].beside.notes if "weights" in n]
    assert note.startswith("a process made the weights again: another process's memory cannot be opened: ")


def test_one_that_can_says_nothing(target: Target) -> None:
    told = _asked(lambda lent: lent, target)
    assert all(judgement.passed for answer in told for judgement in answer.judgements)
    assert not [note for note in told[-1].beside.notes if "weights" in note]
    assert all(answer.peak > 0 for answer in told)


# A device


class Device(Backend):
    """NumPy's arrays where CuPy's would be: half types are native, and arenas are this process's own."""

    name = "cupy"
    native_half = True

    xp = SimpleNamespace(**{name: getattr(np, name) for name in np.__all__}, cuda=None)

    def __init__(self) -> None:
        self.arenas: dict[int, Any] = {}
        self.freed = 0
        self.pool = SimpleNamespace(free_all_blocks=self._free)

    def _free(self) -> None:
        self.freed += 1

    def arena(self, size: int) -> Any:
        there = np.full(size, 255, np.uint8)
        self.arenas[len(self.arenas)] = there
        number, close = len(self.arenas) - 1, self.arenas.pop
        return SimpleNamespace(bytes=there, key=lambda: number, close=lambda: close(number))

    def opened(self, key: Any) -> Any:
        if key not in self.arenas:
            raise BackendError("CUDA does not open another process's memory")
        return self.arenas[key]


def test_of_a_device_each_half_type_is_stored_in_its_own(target: Target) -> None:
    device = Device()
    ours = replace(target, weights=dict(target.weights), backend=device)
    expected = {dtype: _bits(ours, dtype) for dtype in HALVES}
    with lending([ours], HALVES) as loan:
        assert device.freed
        (lent,) = loan.lent
        other = borrowed(lent, device)
        assert {dtype: _bits(other, dtype) for dtype in HALVES} == expected
        assert {place.dtype for place in lent.rounded["bfloat16"].values()} == {"bfloat16"}
        numbers = sum(value.size for value in ours.weights.values())
        assert 8 * numbers <= device.arenas[0].size < 8 * numbers + 3 * ALIGNED * len(ours.weights)
        assert all(np.shares_memory(value, device.arenas[0]) for value in other.weights.values())
    assert not device.arenas
    with pytest.raises(BackendError):
        borrowed(lent, device)


def test_a_second_checkpoint_without_room_ends_the_loan(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    made, device = Device.arena, Device()

    def arena(self: Device, size: int) -> Any:
        if self.arenas:
            raise BackendError("not enough memory")
        return made(self, size)

    monkeypatch.setattr(Device, "arena", arena)
    both = [replace(one, backend=device) for one in (target, tiny())]
    with lending(both, ()) as loan:
        assert loan == ((), "each process made the weights again: not enough memory")
        assert not device.arenas
