"""Judges that share a card: who has room beside whom, and NVIDIA's MPS, which a small program stands for here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from types import SimpleNamespace

import pytest
from dumping import case_of
from dumping import tiny as bundled_tiny

from conformance.cases.plan import plan_of, shape_of, sizes
from conformance.errors import UsageError
from conformance.sweep import card
from conformance.sweep.pool import done
from conformance.sweep.room import bytes_on_device
from conformance.sweep.task import Task, Waiting
from conformance.target import Target
from t5g2ref import params
from t5g2ref.backend import NUMPY
from t5g2ref.config import preset


class Card:
    """A backend as far as it is looked at: its arrays lie on a device."""

    name = "cupy"

    class xp:
        cuda = None


@pytest.fixture(scope="module")
def tiny() -> Target:
    return bundled_tiny()


# Room


def _raising(folder: Path, job: str) -> None:
    raise ValueError(f"of {job}")


def _size(job: str) -> int:
    return int(job[1:])


def test_no_job_is_taken_without_room_beside_those_in_hand() -> None:
    task = Task(_folder, (), _raising, takes=_size, room=10)
    waiting = Waiting(["a8", "b5", "c2", "d50"], task)
    taken = [waiting.next(process) for process in (0, 1, 2)]
    assert [one and one[1] for one in taken] == ["a8", "c2", None]
    assert len(waiting) == 2
    waiting.released(0)
    assert waiting.next(0) == (1, "b5")
    waiting.released(1)
    assert waiting.next(0) is None
    waiting.released(2)
    assert waiting.next(0) == (3, "d50"), "what never fits is done alone"


def test_what_a_process_keeps_of_its_last_job_takes_room() -> None:
    """As a peer's weights do, until it has another one open."""
    holds = {"a": 4, "b": 1}
    task = Task(_folder, (), _raising, alike=lambda job: job[0], takes=_size, holds=lambda job: holds[job[0]], room=12)
    waiting = Waiting(["a1", "b2", "b3", "b8"], task)
    assert waiting.next(0) == (0, "a1")
    assert waiting.next(1) == (1, "b2")
    waiting.released(0)
    assert waiting.next(2) == (2, "b3"), "3 and 1, beside the 4 that the first keeps, and the second's 2 and 1"
    waiting.released(1)
    waiting.released(2)
    assert waiting.next(1) == (3, "b8"), "nothing is in hand"
    assert len(waiting) == 0


def test_what_others_keep_leaves_less_room() -> None:
    task = Task(_folder, (), _raising, takes=_size, holds=lambda _: 4, room=13)
    waiting = Waiting(["a1", "b2", "c3"], task)
    assert waiting.next(0) == (0, "a1")
    assert waiting.next(1) == (1, "b2")
    waiting.released(0)
    assert waiting.next(2) is None, "2, 4 and 4 are taken, and it would have 3 and 4"
    assert waiting.next(0) == (2, "c3"), "instead of what it kept"


def test_a_process_that_died_keeps_nothing() -> None:
    waiting = Waiting(["a1", "b2", "c3"], Task(_folder, (), _raising, takes=_size, holds=lambda _: 4, room=13))
    assert [waiting.next(process) for process in (0, 1, 2)] == [(0, "a1"), (1, "b2"), None]
    waiting.released(0)
    waiting.died(0)
    assert waiting.next(2) == (2, "c3")


def test_a_job_that_is_given_back_takes_no_room() -> None:
    waiting = Waiting(["a8", "b8"], Task(_folder, (), _raising, takes=_size, room=10))
    first = waiting.next(0)
    assert first == (0, "a8")
    assert waiting.next(1) is None
    waiting.back(*first)
    assert waiting.next(1) == (0, "a8")


def _folder(folder: str) -> Path:
    return Path(folder)


def _beside(folder: Path, job: str) -> list[str]:
    """The jobs that were in hand while this one was."""
    mine = folder / job
    assert not (folder.parent / f"closed {os.getpid()}").exists(), "it had done what comes last"
    mine.touch()
    seen = set[str]()
    for _ in range(20):
        seen |= {path.name for path in folder.iterdir()}
        time.sleep(0.01)
    mine.unlink()
    return sorted(seen)


def _last(folder: Path) -> str:
    (folder.parent / f"closed {os.getpid()}").touch(exist_ok=False)
    return "closed"


def test_processes_wait_for_room_and_each_ends_once(tmp_path: Path) -> None:
    """Broken by a process that is dismissed while jobs wait for room, and by one that closes twice."""
    jobs = ["a6", "b6", "c6", "d3", "e3"]
    folder = tmp_path / "jobs"
    folder.mkdir()
    task = Task(_folder, (str(folder),), _beside, last=_last, takes=_size, room=9)
    found = list(done(task, jobs, 3))
    assert sorted(job for job, _ in found if job is not None) == jobs
    assert [result for job, result in found if job is None] == ["closed"] * 3
    for job, seen in found:
        if job is not None:
            assert sum(map(_size, seen)) <= 9 + 6, seen  # one may end, and another begin, while it looks
            assert sum(name.endswith("6") for name in seen) <= 2, seen
    assert any(len(seen) > 1 for job, seen in found if job is not None), "nothing was side by side"


def _ending_the_idle(folder: Path, job: str) -> str:
    """The large job ends the process that waits for room; the other ends its own once."""
    if job == "a9":
        (other,) = [path for path in folder.iterdir() if path.name != str(os.getpid())]
        os.kill(int(other.name), signal.SIGKILL)
        time.sleep(0.3)
        return job
    mark = folder.parent / "once"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def _named(folder: str) -> Path:
    (Path(folder) / str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < 2:  # both are there
        time.sleep(0.01)
    return Path(folder)


def test_a_process_that_dies_while_it_waits_for_room_costs_no_job_a_try(tmp_path: Path) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()
    task = Task(_named, (str(folder),), _ending_the_idle, lost=lambda job, how: how, takes=_size, room=9)
    assert dict(done(task, ["a9", "b9"], 2)) == {"a9": "a9", "b9": "b9"}


def test_what_a_job_takes_is_asked_once_and_only_where_something_is_shared() -> None:
    """Broken by asking whenever somebody waits: for real cases that took the parent minutes."""
    asked: list[str] = []

    def takes(job: str) -> int:
        asked.append(job)
        return _size(job)

    jobs = ["a8", "b5", "c9"]
    waiting = Waiting(jobs, Task(_folder, (), _raising, takes=takes, room=10))
    assert [waiting.next(process) is not None for process in (0, 1, 2, 1, 2)] == [True, False, False, False, False]
    assert asked == jobs
    Waiting(jobs, Task(_folder, (), _raising, takes=takes))
    assert asked == jobs


def test_a_job_that_is_lost_makes_room(tmp_path: Path) -> None:
    jobs = ["a9", "b9"]
    task = Task(_folder, (str(tmp_path),), _dying, lost=lambda job, how: "lost", takes=_size, room=9)
    assert dict(done(task, jobs, 2)) == {"a9": "lost", "b9": "lost"}


def _dying(folder: Path, job: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_of_weights_all_count_and_of_streamed_ones_a_few_layers(tiny: Target) -> None:
    assert card.bytes_of_weights(tiny) > 4 * params.count(tiny.config)
    whole, streamed = (SimpleNamespace(config=preset("4b"), streamed=streamed) for streamed in (False, True))
    table = 262144 * 2560  # in no layer
    assert 4 * table < card.bytes_of_weights(streamed) < card.bytes_of_weights(whole) / 4  # type: ignore[arg-type]


def test_more_judges_than_fit_are_refused_by_number(tiny: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    each = card.bytes_of_weights(tiny) + card.LIBRARIES
    monkeypatch.setattr(card, "free_bytes", lambda _: 3 * each + 17)
    assert card.left_beside([tiny], 3) == 17
    with pytest.raises(UsageError, match=r"--jobs 4: .*; give --jobs 3$"):
        card.left_beside([tiny], 4)
    monkeypatch.setattr(card, "free_bytes", lambda _: each - 1)
    with pytest.raises(UsageError, match=r"--jobs 2: .*; leave --jobs out, and judge in one process$"):
        card.left_beside([tiny], 2)


def test_of_borrowed_weights_only_a_peer_s_own_count(tiny: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = params.count(tiny.config)
    assert card.bytes_of_weights(tiny, {"float32", "bfloat16"}) == 4 * numbers
    assert card.bytes_of_weights(tiny, {"bfloat16", "float16"}) == 2 * numbers
    assert card.bytes_of_weights(tiny) == 8 * numbers
    weights, each = 2 * numbers, card.LIBRARIES
    monkeypatch.setattr(card, "free_bytes", lambda _: 3 * each + weights + 17)
    assert card.left_beside([tiny], 3, {"bfloat16"}) == weights + 17, "peers' own weights are for who takes a job"
    with pytest.raises(UsageError, match=r"--jobs 4: .*; give --jobs 3$"):
        card.left_beside([tiny], 4, {"bfloat16"})
    with pytest.raises(UsageError, match=r"--jobs 3: .*; give --jobs 2$"):
        card.left_beside([tiny], 3)


def test_a_comparison_takes_its_peer_s_values_at_least(tiny: Target) -> None:
    case = case_of(tiny, "short")
    values = sum(prod(shape_of(tap, sizes(tiny.config, case, call, tap))) for call, tap in plan_of(tiny.config, case))
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        assert size * values < bytes_on_device(tiny, case, dtype) < 80 * values
    assert bytes_on_device(tiny, None, "float32") == 0


# MPS


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program in the place of MPS's control, which writes down what it is told."""
    told = tmp_path / "told"
    program = tmp_path / "bin" / card.CONTROL
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$1 ${card.PIPES}$CUDA_VISIBLE_DEVICES" >> {told}\n[ "$1" = -d ] || cat >> {told}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv(card.PIPES, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv(card.LOGS, "mine")
    monkeypatch.setattr(card, "USUAL", tmp_path / "nowhere")
    yield told
    assert card.PIPES not in os.environ
    assert os.environ[card.LOGS] == "mine"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def _interrupted(control: Path) -> str:
    """The folder of a block that was interrupted."""
    with suppress(KeyboardInterrupt), card.side_by_side(Card()) as slow:  # type: ignore[arg-type]
        folder = os.environ[card.PIPES]
        assert slow == ""
        assert Path(folder).is_dir()
        assert control.read_text() == f"-d {folder}\n"
        raise KeyboardInterrupt
    return folder


def test_mps_is_started_for_the_block_and_ended_after_it(control: Path) -> None:
    folder = _interrupted(control)
    assert control.read_text() == f"-d {folder}\n {folder}\nquit\n"
    assert not Path(folder).exists()


def test_a_daemon_that_runs_already_is_left_alone(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "USUAL", control.parent)
    with card.side_by_side(Card()) as slow:  # type: ignore[arg-type]
        assert slow == ""
    assert not control.exists()


def test_a_daemon_of_the_user_s_is_used(control: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(card.PIPES, str(tmp_path))
        with card.side_by_side(Card()) as slow:  # type: ignore[arg-type]
            assert (slow, os.environ[card.PIPES]) == ("", str(tmp_path))
    assert not control.exists()


def test_one_that_does_not_start_in_time_is_told_to_end(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = control.parent / "bin" / card.CONTROL
    program.write_text(f'#!/bin/sh\n[ "$1" = -d ] && exec sleep 20\ncat >> {control}\n')
    monkeypatch.setattr(card, "PATIENCE", 0.5)
    with card.side_by_side(Card()) as slow:  # type: ignore[arg-type]
        assert slow == card.SLOW
    assert control.read_text() == "quit\n"


def test_without_a_folder_for_it_there_is_none(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "SHORT", control.parent / "nowhere")
    with card.side_by_side(Card()) as slow:  # type: ignore[arg-type]
        assert slow == card.SLOW
    assert not control.exists()


@pytest.mark.parametrize("way", ["missing", "failing"])
def test_without_mps_a_note_says_what_it_costs(way: str, control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = control.parent / "bin" / card.CONTROL
    program.write_text("#!/bin/sh\nexit 1\n") if way == "failing" else program.unlink()
    with card.side_by_side(Card()) as slow:  # type: ignore[arg-type]
        assert slow == card.SLOW


def test_on_a_host_nothing_is_started(control: Path) -> None:
    with card.side_by_side(NUMPY) as slow:
        assert slow == ""
    assert not control.exists()
