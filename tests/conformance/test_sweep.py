"""Judging in several processes: nothing that was told is lost when the run is stopped, and no case is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs rich: the progress bar is made with it")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from dumping import case_of, tiny

from conformance.judge.session import Found
from conformance.sweep.shards import Answer, Question, judged, shards
from t5g2ref import bundled

PORT = """
from conformance.peers.reference import ReferencePeer

class Port(ReferencePeer):
    notes, timeout, called = ("it is slow",), 600.0, "mine"
    def versions(self): return {"port": f"waits {self.timeout:g} s"}

def create(_, backend): return Port(backend, "float32")
"""
EVEN = str(bundled("tiny-even"))
QUESTION = Question(
    EVEN, synthetic=False, calm=False, backend="numpy", timeout=7.0, asked=False, alone=True, repeat=True
)


@pytest.fixture
def peers(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "port.py").write_text(PORT)
    return {"port": str(tmp_path / "port.py")}


def plan(*names: str) -> Any:
    target = tiny(EVEN)
    return [(target, case_of(target, name)) for name in names]


def test_an_interruption_keeps_what_was_told(peers: dict[str, str]) -> None:
    pieces = shards(plan("short", "eoi", "loss"), peers, 2, exact=False, asks=lambda _: True)
    found, answer = Found(), Answer()

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(QUESTION, pieces, 2, found, answer, stop)
    assert len(found) == 1
    assert answer.versions == {"port": {"port": "waits 7 s"}}
    assert answer.called == {"port": "mine"}
    assert "it is slow" in answer.notes
    assert all(peak > 0 for peak in answer.peak.values())
    assert answer.peak


def test_the_exact_lane_alone_has_no_case(peers: dict[str, str]) -> None:
    pieces = shards(plan("short"), peers, 2, exact=True, asks=lambda _: False)
    found, answer = Found(), Answer()
    judged(QUESTION, pieces, 2, found, answer, lambda _: None)
    assert [(target, j.case, j.passed) for target, j in found] == [(EVEN, "exact", True)]
