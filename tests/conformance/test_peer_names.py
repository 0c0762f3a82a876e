"""Peers and backends by their names: what each name means, and what the command says of it."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from command_line import Run, ran
from processes import python
from standin import Device

from conformance.errors import PeerUnavailable
from conformance.peers.find import FORMS, create, names
from conformance.peers.reference import ReferencePeer
from t5g2ref.backend import BackendError, find
from t5g2ref.numerics import FAST


def test_peers_that_are_judged_unasked() -> None:
    assert names() == ["transformers:eager:float32", "transformers:sdpa:float32"]
    assert names("bfloat16") == ["transformers:eager:bfloat16", "transformers:sdpa:bfloat16"]


@pytest.mark.parametrize(
    "name",
    [
        *("transformers", "transformers:", "transformers:flash", "transformers:sdpa:", "transformers:sdpa:float64"),
        *("transformers:sdpa::cuda", "transformers:sdpa:float32:tpu", "transformers:sdpa:float32:cuda:"),
        *("t5g2ref", "t5g2ref:numpy", "t5g2ref:numpy:float64", "t5g2ref:numpy:1:float32", "t5g2ref:cupy:x:float32"),
        *("t5g2ref:numpy:float32:fast", "t5g2ref:cupy:fast", "t5g2ref:cupy-fast:float32"),
        *("t5g2ref:numpy:float32:cuda", "nobody", "", "TRANSFORMERS:SDPA", "transformers:sdpa\n"),
    ],
)
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(PeerUnavailable) as caught:
        create(name)
    assert str(caught.value) == f"no peer is called {name!r}; there are: {', '.join(FORMS)}"


def test_a_peer_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError) as why:
        find("cupy")
    for name in ("t5g2ref:cupy:float32", "t5g2ref:cupy:1:bfloat16:fast"):
        with pytest.raises(PeerUnavailable) as caught:
            create(name)
        assert str(caught.value) == f"peer {name}: {why.value}"


def test_the_judge_s_own_backend_is_shared(devices: None) -> None:
    """Two of one device would keep two pools of memory."""

    class Named(Device):
        name = "cupy:1"

    backend = Named()
    peer = create("t5g2ref:cupy:1:bfloat16", backend)
    assert isinstance(peer, ReferencePeer)
    assert peer._nx.backend is backend
    assert peer.versions() == backend.describe()


def test_the_fast_backend_is_a_peer_of_its_own(devices: None) -> None:
    """On the same device, with its own places of rounding."""

    class Named(Device):
        name = "cupy-fast:1"

    backend = Named()
    peer = create("t5g2ref:cupy:1:bfloat16:fast", backend)
    assert isinstance(peer, ReferencePeer)
    assert (peer.name, peer._nx.backend, peer._nx.profile) == ("t5g2ref:cupy:1:bfloat16:fast", backend, FAST)


# The command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """`command(*arguments)` → exit status, lines on stdout, stderr."""
    pytest.importorskip("rich", reason="needs rich: the report is printed with it")
    return partial(ran, capsys)


def test_the_report_names_the_backend(
    command: Run,
    devices: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from conformance.commands import request as running

    device, file = Device(), tmp_path / "out.json"
    monkeypatch.setattr(running, "find", {"stand-in": device}.__getitem__)
    options = ("--ckpt", "tiny-even", "--case", "short", "--json", str(file), "--peer", "t5g2ref:numpy:float16")
    status, lines, _ = command("--backend", "stand-in", *options)
    assert (status, lines[-1]) == (0, "VERDICT: CONFORMS (on 1 of 25 cases)")
    assert "backend stand-in, device none at all, stand-in 1.0" in " ".join(" ".join(lines).split())
    environment = json.loads(file.read_text())["environment"]
    assert {"backend": "stand-in", "device": "none at all", "stand-in": "1.0"}.items() <= environment.items()
    assert [" ".join(line.split()) for line in lines[1:4]] == ["t5g2ref", "numpy", "case float16 worst place (local)"]


def test_the_report_on_numpy_says_no_more_than_before(command: Run, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ("--ckpt", "tiny-even", "--case", "short", "--json", str(file), "--peer", "t5g2ref:numpy:float32")
    assert command("--backend", "numpy", *options)[0] == 0
    assert set(json.loads(file.read_text())["environment"]) == {"t5g2ref", "numpy", "python"}


def test_a_peer_in_two_spellings_is_judged_once(command: Run) -> None:
    peers = ("--peer", "t5g2ref:numpy:float32") * 2
    _, lines, _ = command("--ckpt", "tiny-even", "--case", "short", *peers)
    assert any(line.startswith("2 comparisons,") for line in lines)  # the case and the exact lane


@pytest.mark.parametrize("name", ["tpu", "numpy:1", "cupy:x", "cupy-fast:x", "cupy-faster", "numpy-fast", "", "NumPy"])
def test_unknown_backend(name: str, command: Run) -> None:
    status, lines, err = command("--backend", name)
    assert (status, lines) == (2, [])
    assert err.startswith(f"conformance: no backend is called {name!r}; there are: numpy, cupy")
    assert len(err.splitlines()) == 1


def test_backend_that_is_not_to_be_had(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    for arguments in (("--backend", "cupy"), ("--peer", "t5g2ref:cupy:float32")):
        status, lines, err = command(*arguments)
        assert (status, lines) == (2, [])
        assert "CuPy is not installed" in err
        assert len(err.splitlines()) == 1


def test_every_form_of_name_is_listed(command: Run) -> None:
    status, lines, _ = command("list", "peers")
    assert status == 0
    assert lines[:2] == names()
    assert all(any(form in line for line in lines) for form in FORMS)


def test_the_new_pages_import_no_library() -> None:
    """Neither a peer's framework nor a device's: those come with a backend or with a peer's module."""
    pages = ("measure.distance", "arrays", "activations", "checkpoints", "peers.find", "peers.reference")
    imports = ", ".join(f"conformance.{page}" for page in pages)
    code = f"import sys, {imports}\nassert not {{'torch', 'cupy'}} & set(sys.modules)"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
