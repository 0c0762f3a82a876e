"""A Python file as a peer: found by its path, run, and blamed in one line where it is broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.errors import PeerUnavailable
from conformance.peers.find import create
from t5g2ref.backend import NUMPY

PORT = """
from dataclasses import dataclass
from beside import NAME

@dataclass
class Port:
    given: tuple
    name: str = NAME
    dtype: str = "float32"
    def versions(self): return {"port": "1.0"}
    open = run = close = versions

def create(*given): return Port(given)
def other(argument, backend): return Port((), "other")
def wrong(argument, backend): return 7
def raising(argument, backend): raise RuntimeError("no device\\nhere")
number = 7
"""


@pytest.fixture(autouse=True)
def path_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "beside.py").write_text('NAME = "port"\n')
    (tmp_path / "port.py").write_text(PORT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("beside", "_peer_port"):
        sys.modules.pop(name, None)


def test_its_function_makes_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = create(str(tmp_path / "port.py"))
    assert (peer.name, vars(peer)["given"]) == ("port", ("", NUMPY))
    assert create(f"{tmp_path / 'port.py'}:other").name == "other"
    monkeypatch.chdir(tmp_path)
    assert create("port.py:create").name == "port"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("no.py", None, "peer no.py: there is no file no.py; give FILE.py[:FUNCTION]"),
        ("a.py:make", "", "peer a.py:make: a.py has no function make; define it, or give a.py:FUNCTION"),
        ("a.py", "x = 1", "peer a.py: a.py has no function create; define it, or give a.py:FUNCTION"),
        ("port.py:number", None, "peer port.py:number: port.py has no function number; define it, or give"),
        (
            "a.py",
            "import no_such",
            "peer a.py: a.py could not be imported: ModuleNotFoundError: No module named 'no_su",
        ),
        ("a.py", "def f(:", "peer a.py: a.py could not be imported: SyntaxError: invalid syntax (a.py, line 1)"),
        ("a.py", "raise SystemExit(0)", "peer a.py: a.py could not be imported: SystemExit: 0"),
        ("a.py", "raise ValueError('a\\nb\\x1b[2J')", "peer a.py: a.py could not be imported: ValueError: a"),
        ("port.py:wrong", None, "peer port.py:wrong gave a int without versions, open, run, close()"),
        ("port.py:raising", None, "peer port.py:raising is broken: RuntimeError: no device\n    here"),
    ],
)
def test_a_broken_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "a.py").write_text(text)
    with pytest.raises(PeerUnavailable) as caught:
        create(name)
    assert str(caught.value).startswith(told)
    assert len(str(caught.value).splitlines()) == len(told.splitlines())
    assert "_peer_a" not in sys.modules or text in ("", "x = 1")
    sys.modules.pop("_peer_a", None)


def test_the_example_is_one(peer_installed: None) -> None:
    pytest.importorskip("rich", reason="needs rich: conformance reports with it")
    from conformance import examples
    from conformance.__main__ import main

    assert examples.__file__ is not None
    path = Path(examples.__file__).with_name("forty_lines.py")
    assert main(["--peer", str(path), "--ckpt", "tiny-even", "--case", "short", "--lane", "fp32", "--no-progress"]) == 0
