"""A peer whose framework is broken, and one whose name is of a class of its own: the others are judged all the same."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="needs rich: the report is made with it")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from sharing import command

from conformance.peers.find import create

OURS = "t5g2ref:numpy:float32"
ASKED = ("--case=short", "--ckpt=tiny-released", "--once")
NAMED = """
from conformance.peers.reference import ReferencePeer

class Text(str): ...

def create(_, backend):
    peer = ReferencePeer(backend, "float32")
    peer.name, peer.dtype = Text("mine"), Text("float32")
    return peer
"""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "broken.py").write_text("import no_such_framework\n")
    return tmp_path / "broken.py"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_broken_peer_costs_the_others_nothing(broken: Path, tmp_path: Path, jobs: int) -> None:
    """Broken by an import error that ends the run with status 2."""
    report = tmp_path / "report.json"
    status, out, err = command(f"--peer={broken}", f"--peer={OURS}", *ASKED, f"--jobs={jobs}", "--json", report)
    assert (status, err) == (3, "")
    assert out.splitlines()[-1].endswith(f"{broken} could not be judged on case exact")
    judged = {(j["peer"], j["case"]): j for j in json.loads(report.read_text())["judgements"]}
    assert {j["passed"] for (peer, _), j in judged.items() if peer == OURS} == {True}
    errors = [j["error"] for (peer, _), j in judged.items() if peer == str(broken)]
    assert len(errors) == 2
    assert all("could not be imported: ModuleNotFoundError: No module named 'no_such_framework'" in e for e in errors)


def test_alone_it_ends_the_run(broken: Path) -> None:
    status, out, err = command(f"--peer={broken}", *ASKED)
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_a_name_that_nobody_knows_ends_it_too() -> None:
    status, out, err = command("--peer=nobody", f"--peer={OURS}", *ASKED)
    assert (status, out) == (2, "")
    assert "no peer is called 'nobody'" in err


def test_a_name_of_a_class_of_its_own(tmp_path: Path) -> None:
    """Broken by a name that a worker cannot unpickle, since it has not imported the peer's file."""
    (tmp_path / "named.py").write_text(NAMED)
    peer = create(str(tmp_path / "named.py"))
    assert (type(peer.name), type(peer.dtype), peer.name) == (str, str, "mine")
    assert b"Text" not in pickle.dumps((peer.name, peer.dtype))
    status, _, err = command(f"--peer={tmp_path}/named.py", *ASKED, "--jobs=2")
    assert (status, err) == (0, "")
