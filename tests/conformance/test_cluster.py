"""`--cluster`: the verdict of one process from the workers of a Dask scheduler, whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs rich: the report is made with it")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")
pytest.importorskip("distributed", reason="needs distributed: pip install t5g2ref[cluster]")

from dask_cluster import Cluster, dask_cluster
from dumping import tiny
from sharing import command, verdict

from conformance.errors import CheckpointError, UsageError
from conformance.report.terms import Asked, Terms, work
from conformance.sweep import client
from conformance.sweep import cluster as sweep
from conformance.sweep.engine import Engine
from conformance.sweep.workers import Question, judged

pytestmark = pytest.mark.cluster

PEERS = '''
"""A wrong mask, and one that ends its worker, its own process, or never, as `how` says."""

import os
import signal
import time
from pathlib import Path

from conformance.defects.all import FAULTS
from conformance.peers.reference import ReferencePeer
from conformance.selftest.faulty_peer import FaultyPeer

HERE = Path(__file__).parent


MASK = next(f for f in FAULTS if f.id == "D31")
def window(_, backend): return FaultyPeer(MASK.inject, name="window")


class Dying(ReferencePeer):
    def run(self, case, dump):
        how = HERE / "how"
        if case.name == "eoi" and how.exists():
            what, left = how.read_text().split()
            how.write_text(f"{what} {int(left) - 1}")
            if int(left) and what == "worker":
                os.kill(os.getppid(), signal.SIGKILL)
            if int(left) and what == "itself":
                os.kill(os.getpid(), signal.SIGKILL)
            if int(left):
                time.sleep(60)
        super().run(case, dump)


def dying(_, backend): return Dying(backend, "float32")
'''
CASES = ("--case=short", "--case=eoi", "--ckpt=tiny-even", "--once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    (made / "peers.py").write_text(PEERS)
    return made


@pytest.fixture(scope="module")
def there(folder: Path) -> Iterator[Cluster]:
    with dask_cluster(folder) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[str]:
    return [*(f"--peer={folder}/peers.py:{peer}" for peer in ("window", "dying")), *CASES]


@pytest.fixture(scope="module")
def whole(folder: Path, asked: list[str]) -> Any:
    """The verdict of a run in one process."""
    assert command(*asked, "--json", folder / "whole.json")[0] == 1
    return verdict(folder / "whole.json")


def dies(folder: Path, what: str) -> None:
    (folder / "how").write_text(what)


def test_a_worker_that_is_killed_changes_no_verdict(there: Cluster, folder: Path, asked: list[str], whole: Any) -> None:
    """Broken by a scheduler that does what was in hand again as often as it likes, or not at all; by anything that does
    not come back from another machine as it was."""
    dies(folder, "worker 1")
    status, _, err = command(*asked, "--cluster", there.address, "--json", folder / "cluster.json")
    assert (status, err) == (1, "")
    assert (folder / "how").read_text() == "worker -1"  # it was begun twice
    assert verdict(folder / "cluster.json") == whole
    there.worker()


def test_a_shard_may_be_of_a_cluster(there: Cluster, folder: Path, asked: list[str], whole: Any) -> None:
    dies(folder, "nobody 0")
    command(*asked, "--shard=1/2", "--json", folder / "1.json", "--cluster", there.address)
    command(*asked, "--shard=2/2", "--json", folder / "2.json")
    status, _, err = command("merge", folder / "1.json", folder / "2.json", "--json", folder / "merged.json")
    assert (status, err) == (1, "")
    assert verdict(folder / "merged.json") == whole


def test_an_interruption_ends_the_processes_and_keeps_what_has_ended(
    there: Cluster, folder: Path, asked: list[str], whole: Any
) -> None:
    dies(folder, "sleeps 1")
    kept = folder / "kept"

    def stop() -> None:
        while (folder / "how").read_text() != "sleeps 0":  # a comparison is in the middle
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    status, out, _ = command(*asked, "--cluster", there.address, "--resume", kept)
    assert status in (1, 3)  # a peer deviates, if it has been judged
    assert "interrupted" in out.splitlines()[-1] or status == 1
    ended = len(kept.read_text().splitlines()) - 1
    assert 0 < ended < 6
    status, _, err = command(*asked, "--cluster", there.address, "--resume", kept, "--json", folder / "cluster.json")
    assert (status, err) == (1, "")
    assert verdict(folder / "cluster.json") == whole


def test_a_process_that_dies_twice_costs_its_comparison_by_name(there: Cluster, folder: Path) -> None:
    dies(folder, "itself 2")
    asked = (f"--peer={folder}/peers.py:dying", *CASES, "--lane=fp32", "--cluster", there.address)
    status, out, err = command(*asked)
    assert (status, err) == (3, "")
    assert "could not be judged on case eoi" in out.splitlines()[-1]
    assert "its process ended by SIGKILL (out of memory, it may be), and so did the next that tried" in " ".join(
        out.split()
    )


def test_the_self_test_on_a_cluster(there: Cluster) -> None:
    status, out, err = command("selftest", "--fault=D24", "--cluster", there.address)
    assert (status, err) == (0, "")
    assert "VERDICT: CONFORMS - 2 of 2 faults killed" in out


def question(ckpt: str, mark: str) -> tuple[Question, Any]:
    """A reference peer on the case short, and a fingerprint that the weights have to have."""
    peer = Asked("t5g2ref:numpy:float32", "float32", "t5g2ref:numpy:float32")
    terms = Terms(peers=(peer,), environment={}, ckpt="tiny-even", cases=("short",), exact=False)
    made = work(terms, [tiny("tiny-even")])
    asked = Question(
        replace(terms, ckpt=ckpt), {peer.name: peer.name}, ("tiny-even",), "numpy", 7.0, {"tiny-even": mark}
    )
    return asked, made


@pytest.mark.parametrize(
    ("ckpt", "kind", "why"),
    [
        ("tiny-even", UsageError, "has other weights of checkpoint tiny-even: give a bundled name"),
        ("/no/such/folder", CheckpointError, "/no/such/folder"),
    ],
)
def test_a_worker_without_the_checkpoint(there: Cluster, ckpt: str, kind: type[Exception], why: str) -> None:
    asked, made = question(ckpt, "0" * 64)
    with pytest.raises(kind, match=rf"--cluster {there.address}: worker tcp://[\d.:]+: ?.*{why}"):
        judged(asked, made, made.every, Engine(None, there.address), lambda *_: None)


@pytest.mark.parametrize("address", ["nonsense", "nowhere://a:1", "tcp://127.0.0.1:1", ""])
def test_an_address_where_nobody_answers(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REACH", 0.3)
    status, out, err = command("--peer=t5g2ref:numpy:float32", *CASES, f"--cluster={address}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"conformance: --cluster{' ' * bool(address)}{address}: ")


def test_a_cluster_without_workers_or_with_one_of_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "FIRST", 0.3)
    (tmp_path / "sitecustomize.py").write_text("import numpy\nnumpy.__version__ = '0.1'\n")
    with dask_cluster(tmp_path, 0) as odd:
        asked = ("--peer=t5g2ref:numpy:float32", *CASES, "--cluster", odd.address)
        empty = command(*asked)
        odd.worker(environment={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
        mixed = command(*asked)
    assert [(status, out, err.count("\n")) for status, out, err in (empty, mixed)] == [(2, "", 1)] * 2
    assert "the scheduler has no workers; start some with `dask worker tcp://" in empty[2]
    assert "has numpy 0.1, not " in mixed[2]
