"""Workers that come, go, move and lie: what the scheduler of a cluster makes of it, without any cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: processes share the cores by it")

from conformance.errors import Unavailable, UsageError
from conformance.exchange.plain import PlainError
from conformance.sweep import cluster, remote
from conformance.sweep.task import Task

Says = Callable[[str, Any], Any]


class Future:
    """What a worker said, which is there at once."""

    def __init__(self, said: Any) -> None:
        self._said = said

    def add_done_callback(self, then: Callable[[Future], None]) -> None:
        if self._said is not None:
            then(self)

    def result(self, timeout: float) -> bytes:
        if isinstance(self._said, Exception):
            raise self._said
        return self._said if isinstance(self._said, bytes) else json.dumps(self._said).encode()


class Client:
    """Workers by address, of one thread each. `says` gives what one answers to a job; None for nothing yet."""

    def __init__(self, says: Says, *workers: str, versions: Any = None) -> None:
        self.says, self.workers, self.status = says, list(workers), "running"
        self.odd, self.asked, self.ended = dict(versions or {}), list[tuple[str, Any]](), False

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(self.workers, 1)

    def run(self, what: Any, *of: Any, workers: Any = (), on_error: str = "") -> Any:
        if what is remote.end:
            self.ended = True
        return {one: self.odd.get(one, {"here": one, "versions": remote.versions()}) for one in workers}

    def submit(self, what: Any, run: str, number: int, here: str, packed: bytes, job: bytes, **more: Any) -> Future:
        (worker,), given = more["workers"], remote.pickle.loads(job)
        self.asked.append((worker, given))
        return Future(self.says(worker, given))

    def cancel(self, futures: Any, force: bool) -> None: ...


def _start() -> None: ...


def _work(_: None, job: str) -> str:
    return job


def _text(_: str, raw: Any) -> str:
    if not isinstance(raw, str):
        raise PlainError("expected text")
    return raw


LOST = Task(_start, (), _work, lost=lambda job, how: f"{job} lost: {how}", checked=_text)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    for name, value in (("LOOK", 0.01), ("PATIENCE", 0.05), ("FIRST", 0.05)):
        monkeypatch.setattr(cluster, name, value)

    def done(client: Client, *jobs: str, task: Task = LOST, most: int | None = None) -> dict[str, str]:
        @contextmanager
        def client_of(_: str) -> Iterator[Client]:
            yield client

        monkeypatch.setattr(cluster, "client_of", client_of)
        try:
            return dict(cluster.done(task, jobs, "A", most))
        finally:
            assert client.ended or not client.asked

    return done


def echo(_: str, job: Any) -> Any:
    return {"result": job}


def test_each_thread_has_a_job_in_hand(found: Callable[..., dict[str, str]]) -> None:
    client = Client(echo, "a", "b")
    assert found(client, "1", "2", "3") == {"1": "1", "2": "2", "3": "3"}
    assert {worker for worker, _ in client.asked} == {"a", "b"}
    alone = Client(echo, "a", "b")
    assert found(alone, "1", "2", most=1) == {"1": "1", "2": "2"}
    assert {worker for worker, _ in alone.asked} == {"a"}


@pytest.mark.parametrize("how", ["goes", "moved", "died", "error"])
def test_what_a_dead_worker_had_in_hand_is_tried_once_more_by_another(
    found: Callable[..., dict[str, str]], how: str
) -> None:
    """Broken by a job that is done as often as workers die of it, or that is lost with the first."""
    deaths = 0

    def says(worker: str, job: Any) -> Any:
        nonlocal deaths
        if job != "bad":
            return {"result": job}
        deaths += 1
        if how in ("goes", "moved"):
            client.workers.remove(worker)
            client.workers.append(f"{worker}'")
        return {"goes": None, "moved": {"moved": "x"}, "died": {"died": "it ended"}, "error": OSError("gone")}[how]

    client = Client(says, "a", "b")
    result = found(client, "1", "bad", "2")
    assert (result["1"], result["2"], deaths) == ("1", "2", 2)
    assert result["bad"].startswith("bad lost: ")
    assert result["bad"].endswith(", and so did the next that tried")


def test_a_worker_that_comes_late_is_used(found: Callable[..., dict[str, str]]) -> None:
    def says(worker: str, job: Any) -> Any:
        if worker == "a" and client.workers == ["a"]:
            client.workers = ["b"]
            return None
        return {"result": f"{job} {worker}"}

    client = Client(says, "a")
    assert found(client, "1") == {"1": "1 b"}


def test_one_of_other_versions_that_comes_late_is_left_out(
    found: Callable[..., dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def says(worker: str, job: Any) -> Any:
        client.workers = ["odd", "b"] if worker == "a" else client.workers
        return None if worker == "a" else {"result": worker}

    client = Client(says, "a", versions={"odd": {"here": "", "versions": remote.versions() | {"source": "0"}}})
    assert found(client, "1", "2") == {"1": "b", "2": "b"}
    assert capsys.readouterr().err == (
        "conformance: --cluster A: worker odd has another source of t5g2ref: "
        "install the same t5g2ref, numpy and Python there; it is left out\n"
    )


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"here": "", "versions": remote.versions() | {"numpy": "0"}}, "has numpy 0, not "),
        ({"here": "", "versions": {}}, "has t5g2ref none, not "),
        (ModuleNotFoundError("No module named 'conformance'"), "cannot import conformance (No module named"),
        ("what", "has t5g2ref none, not "),
    ],
)
def test_one_of_other_versions_is_refused_by_name(found: Callable[..., dict[str, str]], told: Any, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        found(Client(echo, "a", "b", versions={"b": told}), "1")
    assert str(caught.value).startswith(f"--cluster A: worker b {why}")


@pytest.mark.parametrize(
    ("said", "kind", "why"),
    [
        ({"result": 7}, UsageError, "sent no result: expected text"),
        ({"error": 7}, UsageError, "sent no result: "),
        ({"what": 7}, UsageError, "sent no result: "),
        ({"error": ["UsageError", "no such case"]}, UsageError, "worker a: no such case"),
        ({"error": ["KeyError", "at x"]}, RuntimeError, "worker a: at x"),
        ({"refused": ["CheckpointError", "no such file"]}, Unavailable, "worker a: no such file"),
        ({"error": ["KeyboardInterrupt", ""]}, KeyboardInterrupt, "worker a"),
    ],
)
def test_what_is_no_result_ends_the_run(
    found: Callable[..., dict[str, str]], said: Any, kind: type[BaseException], why: str
) -> None:
    with pytest.raises(kind, match=why):
        found(Client(lambda *_: said, "a"), "1")


@pytest.mark.parametrize("said", [b"", b"[", b"[]", b"{}", b"[" * 100_000, b'{"a": 1, "b": 2}', b"\xff", 7])
def test_bytes_that_are_no_answer_are_a_worker_that_went_away(found: Callable[..., dict[str, str]], said: Any) -> None:
    assert "lost: its worker went away" in found(Client(lambda *_: said, "a"), "1")["1"]


@pytest.mark.parametrize(
    ("closed", "why"), [(True, "the scheduler went away"), (False, "there was no worker for 0.05 s")]
)
def test_when_nobody_is_left_every_job_is_lost_by_name(
    found: Callable[..., dict[str, str]], closed: bool, why: str
) -> None:
    def says(worker: str, job: Any) -> Any:
        client.workers, client.status = [], "closed" if closed else "running"

    client = Client(says, "a")
    assert found(client, "1", "2", "3") == {job: f"{job} lost: {why}" for job in "123"}
    client = Client(says, "a")
    with pytest.raises(Unavailable, match=f"--cluster A: {why}"):
        found(client, "1", "2", task=Task(_start, (), _work))


def test_nobody_was_there_at_all(found: Callable[..., dict[str, str]]) -> None:
    with pytest.raises(Unavailable, match="the scheduler has no workers; start some with `dask worker A`"):
        found(Client(echo), "1")
