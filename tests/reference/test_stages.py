"""tools/stages.py: a stage's time is its own, without the stages inside it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from processes import ROOT

pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: stages are timed on one core")
sys.path.append(str(ROOT / "tools"))

import stages


def test_a_stage_s_time_is_without_those_inside_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(stages.time, "thread_time", lambda: now[0])
    clock = stages.Clock()

    def passing(seconds: float, *inside: Any) -> Any:
        def call(*given: Any) -> None:
            now[0] += seconds
            for one in inside:
                one(*given)

        return call

    product = clock.timed(passing(4.0), clock.product)
    softmax = clock.timed(passing(2.0, product, product), lambda *_: "softmax")
    attention = clock.timed(passing(1.0, softmax), lambda *_: "attention")
    attention(None, np.zeros((3, 5, 7)), np.zeros((3, 7, 2)))
    name = "product (5, 7) × (7, 2)"
    assert clock.seconds == {name: 8.0, "softmax": 2.0, "attention": 1.0}
    assert clock.operations[name] == 2 * (2 * 3 * 5 * 7 * 2)
    stages.show(clock, 12.0, 2)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-2][-3:] == ["500.00", "ms", "8.3%"], "what lies between the stages"
    assert lines[-1] == ["all", "6000.00", "ms"]


def test_every_stage_is_where_it_is_looked_for() -> None:
    assert all(callable(getattr(module, name)) for _, module, name in stages.STAGES)
