"""Judging in several processes: nothing that was told is lost when the run is stopped, and no case is made up."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="needs rich: the progress bar is made with it")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from dumping import tiny

from conformance.judge.comparisons import Comparison
from conformance.report.terms import Asked, Terms, Work, work
from conformance.sweep.engine import Engine
from conformance.sweep.pool import done
from conformance.sweep.task import ProcessDied, Task, Waiting
from conformance.sweep.workers import Answer, Question, judged
from t5g2ref import bundled

PORT = """
from conformance.peers.reference import ReferencePeer

class Port(ReferencePeer):
    notes, timeout, called = ("it is slow",), 600.0, "mine"
    def versions(self): return {"port": f"waits {self.timeout:g} s"}
    def close(self): raise ValueError("it will not")

def create(_, backend): return Port(backend, "float32")
"""
EVEN = str(bundled("tiny-even"))
Told = list[tuple[Comparison | None, Answer]]


@pytest.fixture
def peers(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "port.py").write_text(PORT)
    return {"port": str(tmp_path / "port.py")}


def asked(peers: dict[str, str], *cases: str, exact: bool = False, values: bool = True) -> tuple[Question, Work]:
    terms = Terms(
        peers=tuple(Asked(name, "float32", given) for name, given in peers.items()),
        environment={},
        ckpt=EVEN,
        cases=cases,
        exact=exact,
        values=values,
    )
    what = work(terms, [tiny(EVEN)])
    return Question(terms, peers, (EVEN,), "numpy", 7.0), what


def test_an_interruption_keeps_what_was_told(peers: dict[str, str]) -> None:
    question, asked_for = asked(peers, "short", "eoi", "loss")
    told = Told()

    def stop(one: Comparison | None, answer: Answer) -> None:
        told.append((one, answer))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(question, asked_for, asked_for.every, Engine(2), stop)
    ((one, answer),) = told
    assert one in asked_for.every
    assert answer.beside.versions == {"port": {"port": "waits 7 s"}}
    assert answer.beside.called == {"port": "mine"}
    assert "it is slow" in answer.beside.notes
    assert answer.process not in ("", f"{socket.gethostname()}:{os.getpid()}")
    assert answer.peak > 0


def test_the_exact_lane_alone_has_no_case(peers: dict[str, str]) -> None:
    question, asked_for = asked(peers, "short", exact=True, values=False)
    told = Told()
    judged(question, asked_for, asked_for.every, Engine(2), lambda *of: told.append(of))
    (first, answer), (last, closing) = told
    assert first == (EVEN, "port", "exact")
    assert [(j.case, j.passed) for j in answer.judgements] == [("exact", True)]
    assert last is None  # the peer's end is told too
    assert [note for note in closing.beside.notes if "close() raised" in note]


def _folder(folder: str) -> Path:
    return Path(folder)


def _dying(folder: Path, job: str) -> str:
    """`times` of a job's name: how often it ends its process."""
    name, times = job.split()
    with (folder / name).open("a") as file:
        file.write("x")
    if len((folder / name).read_text()) <= int(times):
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def test_a_dead_process_costs_its_job_alone_and_that_is_tried_again(tmp_path: Path) -> None:
    """Broken by a pool that is broken as a whole: every job that waits is lost with it."""
    jobs = ["a 0", "b 1", "c 0", "d 2", "e 0"]
    found = dict(done(Task(_folder, (str(tmp_path),), _dying, lost=lambda job, how: f"{job} lost: {how}"), jobs, 2))
    how = "its process ended by SIGKILL (out of memory, it may be), and so did the next that tried"
    assert found == {"a 0": "a", "b 1": "b", "c 0": "c", "d 2": f"d 2 lost: {how}", "e 0": "e"}
    assert {path.name: len(path.read_text()) for path in tmp_path.iterdir()} == {"a": 1, "b": 2, "c": 1, "d": 2, "e": 1}


def _leaving_a_child(folder: Path, job: str) -> None:
    """The child has this process's end of the pipe, and outlives it."""
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_and_leaves_a_child_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    ((_, found),) = done(Task(_folder, (str(tmp_path),), _leaving_a_child, lost=lambda _, how: how), ["a"], 1)
    assert "SIGKILL" in found
    assert time.monotonic() - began < 15


def _ending(folder: Path, job: str) -> None:
    os._exit(7)


def test_how_a_process_ended_is_its_own(tmp_path: Path) -> None:
    """Broken by a process that is ended before it is asked: SIGTERM is then always the cause."""
    ((_, found),) = done(Task(_folder, (str(tmp_path),), _ending, lost=lambda _, how: how), ["a"], 1)
    assert found == "its process ended with status 7, and so did the next that tried"


def test_without_a_word_for_the_lost_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProcessDied, match=r"SIGKILL .*twice"):
        list(done(Task(_folder, (str(tmp_path),), _dying), ["a 9"], 1))


def _raising(folder: Path, job: str) -> None:
    raise ValueError(f"of {job}")


def test_an_error_comes_with_where_it_arose(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of a") as caught:
        list(done(Task(_folder, (str(tmp_path),), _raising), ["a"], 1))
    assert "in _raising" in caught.value.__notes__[0]


def test_what_is_alike_stays_with_one_process_while_others_have_work() -> None:
    task = Task(_folder, (), _raising, alike=lambda job: job[0])
    waiting = Waiting(["a0", "b0", "a1", "c0", "c1", "c2"], task)
    turns = [waiting.next(process) for process in (0, 1, 0, 0, 1, 1, 0)]
    assert [turn and turn[1] for turn in turns] == ["a0", "b0", "a1", "c0", "c1", "c2", None]
