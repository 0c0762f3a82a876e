"""tools/bench.py on a card, of which there is none here: a stand-in has NumPy's numbers and the ways of a device."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from processes import ROOT

from t5g2ref.backend import NUMPY, Backend

sys.path.append(str(ROOT / "tools"))

import bench
from benchmark import options, timing


def test_a_side_may_be_warmed_up_more_often() -> None:
    from benchmark.trials import Trials

    seen: list[str] = []
    work = timing.Work(
        lambda _: seen.append("run"), lambda _: np.zeros(1), check=lambda _: seen.append("check"), warmups=2
    )
    meter = SimpleNamespace(start=lambda: None, read=lambda: 1)
    trials = Trials(
        "it", lambda what, action, name: bool(action()) or True, lambda name: meter, lambda: None, twice=True
    )
    assert list(trials.all({"a": work})) == ["a"]
    assert seen == ["check", "run", "run", "run"]


class Pool:
    """A device's memory: what is held, and the most that was."""

    def free_all_blocks(self) -> None:
        pass

    def used_bytes(self) -> int:
        return 100

    def total_bytes(self) -> int:
        return 100 + 4096


class Library:
    """NumPy as a library of devices: the same numbers, and a device that can be waited for."""

    def __init__(self, waits: list[str]) -> None:
        self.cuda = SimpleNamespace(Device=lambda: SimpleNamespace(synchronize=lambda: waits.append("waited")))

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class Card(Backend):
    def __init__(self, name: str, waits: list[str]) -> None:
        self.name, self.xp, self.pool = name, Library(waits), Pool()


@pytest.mark.slow
def test_a_device_has_its_own_meters_limits_and_waits(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import items

    class Meter:
        """As torch's on a card, of which there is none here."""

        def __init__(self, device: Any) -> None:
            assert device.type == "cpu"

        def start(self) -> None:
            pass

        def read(self) -> int:
            return 8192

    waits: list[str] = []
    monkeypatch.setattr(items, "TorchMeter", Meter)
    monkeypatch.setattr(items, "beside", lambda *_: pytest.fail("a card's rates are those of the whole run"))
    cards = (Card("cupy", waits), Card("cupy-fast", waits))
    asked = options.options_of(options.parser().parse_args(["--what=encode", "--what=decode", "--repeats=1"]))
    asked = replace(asked, backends=cards, against=("sdpa", "eager"), batches=(1, 3))
    target, origin = bench.checkpoint(replace(asked, backends=(NUMPY,)), lambda *_: None)
    told: list[Any] = []
    reporter = SimpleNamespace(start=told.append, say=told.append, step=lambda: told.append(1))
    found = quick.run(asked, target, origin, reporter)
    assert found.warnings == []
    assert [(row.item, row.batch) for row in found.rows] == [("encode", 1), ("decode", 1), ("encode", 3), ("decode", 3)]
    for one in found.rows:
        assert list(one.sides) == ["cupy", "cupy-fast", "sdpa", "eager"]
        assert max(side.distance for side in one.sides.values()) <= 1e-5
        assert [side.memory for side in one.sides.values()] == [4096, 4096, 8192, 8192]
        assert (one.computing, one.moving) == (one.operations / 1e9, one.bytes / 1e9)
        assert one.beside is None
    assert any("the time to launch kernels is in it" in note for note in found.notes)
    assert any("TF32 is off" in note for note in found.notes)
    assert len(waits) > 4 * 4 * 2, "before and after each call"
    assert (told.count(4), told.count(1)) == (1, 4), "rows to come, and each when it is done"
