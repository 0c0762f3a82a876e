"""The self-test is one itself: a judge that lets a fault through, or says the wrong thing of it, has to fail it."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("rich", reason="needs rich: the matrix is printed by it")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from conformance.cases import catalogue as cases
from conformance.cases import pictured
from conformance.commands import selftest
from conformance.defects import all as catalogue
from conformance.defects.injection import HEALTHY, Fault
from conformance.errors import UsageError
from conformance.judge.judge import judge
from conformance.selftest import workers
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.legal import LEGAL
from conformance.selftest.matrix import Outcome, wrong
from conformance.selftest.trial import Bench, Trial

pytestmark = pytest.mark.slow  # minutes in all


@pytest.fixture(scope="module")
def bench() -> Bench:
    return workers._bench(workers.Given("tiny", False, False, "numpy"))


def fault_of(key: str) -> Fault:
    return next(f for f in catalogue.FAULTS if f.key == key)


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    selftest.add_options(parser)
    return parser.parse_args(["--no-progress", "--jobs", "1", *given])


@pytest.mark.parametrize(
    "key",
    [
        *("D02 bf16", "D24 in k_norm", "D31 even", "D34 cache", "D36 cached", "D41", "D48", "D49 ignored"),
        *("D51 bf16", "D55", "D60 order", "D63 squares fp16", "D65 pads", "D66"),
        *("D19 tables", "D32", "D67", "D69 one query", "D72 decoder", "D75 slots", "D76 scale", "D77", "D81 first"),
        *("X01 bf16", "X04", "X15", "X18", "X33", "X47", "X55", "X63"),
    ],
)
def test_judged_as_it_should_be(key: str, bench: Bench) -> None:
    fault = fault_of(key)
    assert wrong(fault, bench.try_out(fault, "own")) == []


def test_letters(bench: Bench) -> None:
    """Positions that slip behind a cache: without one nothing changes at all."""
    trial = bench.try_out(fault_of("D28 restarts"), "all")
    cells = {letter: {case for case, cell in trial.cells.items() if cell == letter} for letter in "Kk!."}
    assert "cross-cached" in cells["K"]
    assert {"short", "far-positions", "loss"} <= cells["."]
    assert not cells["!"]


def test_what_is_smaller_than_rounding_is_marked(bench: Bench) -> None:
    healthy = replace(fault_of("X30"), inject=LEGAL["reversed"][1])
    cells = bench.try_out(healthy, "all").cells
    assert cells.pop(pictured.NAME) == ".", "no model is asked there"
    assert set(cells.values()) == {"!"}
    assert bench.try_out(replace(healthy, inject=HEALTHY), "all").cells["window"] == "."


@pytest.mark.parametrize("name", LEGAL)
@pytest.mark.parametrize("lane", selftest.LANES)
def test_legal_runs_conform(name: str, lane: Any, bench: Bench) -> None:
    target, (profile, injection) = bench.targets["tiny"], LEGAL[name]
    peer = FaultyPeer(injection, target.backend, lane, profile)
    peer.open(target)
    (case,) = cases.select(cases.build(target.config), ["padded-left-cached"])
    result = judge(cast(Any, peer), target, case, repeat=False)
    assert result.culprit is None, result.culprit


# What fails a self-test


D24 = Trial("D24 in k_norm", {"short": "K"}, (fault_of("D24 in k_norm").tap, "values", 0), 1e7, ["D24"], injected=True)


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (D24, None),
        (replace(D24, culprit=None, cells={"short": "!"}), "survived"),
        (replace(D24, cells={"short": "!"}), "survived"),  # nobody calls it a deviation
        (replace(D24, culprit=("decoder.layers.1.self_attn.cross_k_norm", "values", 0)), "expected"),
        (replace(D24, culprit=(fault_of("D24 in k_norm").tap, "shape", 0)), "expected"),
        (replace(D24, culprit=(fault_of("D24 in k_norm").tap, "values", 1)), "expected"),
        (replace(D24, named=[]), "not named"),
        (replace(D24, named=["D16"]), "named D16, which it is not"),
        (replace(D24, named=["D16", "D24"]), "named D16, which it is not"),
    ],
)
def test_wrong_verdicts_fail(trial: Trial, message: str | None) -> None:
    outcome = Outcome([fault_of(trial.key)], [trial], whole=False)
    assert bool(outcome.failures()) == (message is not None)
    assert outcome.last_line().startswith("VERDICT: CONFORMS" if message is None else "VERDICT: DEVIATES")
    assert message is None or message in outcome.failures()[0]


def test_a_false_label_of_our_own_fails() -> None:
    fault = fault_of("X30")
    trial = Trial("X30", {"short": "K"}, (fault.tap, "values", 0), 1e6, ["D28"], injected=True)
    assert wrong(fault, trial) == ["X30 in short: named D28, which it is not"]


def test_a_near_fault_need_not_be_found_and_must_not_be_named() -> None:
    near = next(f for f in catalogue.NEAR if f.near == "D52")
    survived = Trial(near.key, {near.case: "!"}, injected=True)
    assert wrong(near, survived) == []
    assert wrong(near, replace(survived, named=["D52"])) == [f"{near.key} in window: named D52, which it is not"]
    assert wrong(near, replace(survived, injected=False))[0].endswith("with it and without")
    outcome = Outcome([near], [survived], [])
    assert outcome.near() == ["near to a catalogued one, bfloat16: 0 of 1 found", f"  within the rounding: {near.id}"]
    assert "none of 1 near ones called by its neighbour's name" in outcome.last_line()


def test_there_are_enough_near_faults() -> None:
    lanes = {(f.id, f.lane) for f in catalogue.NEAR}
    assert len(lanes) == len(catalogue.NEAR) == 2 * len({f.id for f in catalogue.NEAR}) >= 80
    assert {f.near for f in catalogue.NEAR} == {"D02", "D11", "D12", "D13", "D27", "D51", "D52"}


@pytest.mark.parametrize("key", ["N13.1 bf16", "N52.2 bf16", "N52.11", "N02.1 bf16", "N12.17 bf16", "N51.3 bf16"])
def test_near_faults_are_not_called_by_a_name(key: str, bench: Bench) -> None:
    (fault,) = (f for f in catalogue.NEAR if f.key == key)
    assert wrong(fault, bench.try_out(fault, "own")) == []


def test_a_blamed_legal_run_fails() -> None:
    assert Outcome(legal=[("pieces", "float32", "tiny", "short", "logits values")], whole=False).failures()
    assert not Outcome(legal=[("pieces", "float32", "tiny", "short", "")], whole=False).failures()


def test_declarations_are_held_against_the_matrix(bench: Bench) -> None:
    (short,) = cases.select(cases.build(bench.targets["tiny"].config), ["short"])
    short = replace(short, exposes=("D24",))
    keys = ("D24 after k_norm", "D24 in k_norm")

    def outcome(*cells: str) -> Outcome:
        trials = [
            Trial(key, {"short": cell} if cell else {}, injected=True) for key, cell in zip(keys, cells, strict=True)
        ]
        return Outcome([fault_of(key) for key in keys], trials, [short])

    assert outcome("K", "k").undeserved() == []
    assert outcome("K", ".").undeserved() == []  # a variant that cannot show there
    assert outcome(".", ".").undeserved() == ["case short declares D24, of which no variant is killed there"]
    assert outcome("K", "!").undeserved() == ["case short declares D24, but D24 in k_norm survives there"]
    undeclared = replace(short, exposes=())
    assert replace(outcome("K", "k"), cases=[undeclared]).undeclared() == {"short": ["D24"]}
    assert replace(outcome("!", "."), cases=[undeclared]).rounding() == []  # its own case
    assert outcome("K", "K").pairs()


# The command


def test_one_fault_in_detail(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert selftest.main(options("--fault", "X25", "--fault", "d47", "--json", str(file))) == 0
    told = capsys.readouterr().out
    assert "another operation" not in told
    assert "put in by   another configuration" in told
    assert "named       D47" in told
    assert told.splitlines()[-1].startswith("VERDICT: CONFORMS - 2 of 2 faults")
    found = json.loads(file.read_text())
    assert [row["id"] for row in found["faults"]] == ["D47", "X25"]


def test_a_fault_that_does_nothing_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FAULTS", [replace(fault_of("D47"), inject=HEALTHY)])
    assert selftest.main(options("--fault", "D47")) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "VERDICT: DEVIATES - the judge failed 1 times, first: D47 in short was not injected: "
        "the peer shows the same with it and without"
    )


def test_matrix_is_plain_and_narrow(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FAULTS", [fault_of("D58 mean")])
    monkeypatch.setattr(catalogue, "NEAR", [])
    monkeypatch.setattr(selftest, "LEGAL", {})
    status = selftest.main(options("--matrix"))
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert max(map(len, told.splitlines()[:15])) <= 100
    assert "D58 mean                   . . . . . . . . . . . K K . ." in told
    assert status == 0 or "declares" in told  # what the cases declare of other faults is not checked: they were not run


def test_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--fault D99: there is no such fault"):
        selftest.main(options("--fault", "D99"))
    with pytest.raises(UsageError, match=r"^--fault D24 --lane fp16: there is no such fault"):
        selftest.main(options("--fault", "D24", "--lane", "fp16"))
    with pytest.raises(UsageError, match="there is no folder"):
        selftest.main(options("--json", str(tmp_path / "no" / "x.json")))
    with pytest.raises(UsageError, match="at least 1"):
        selftest.main(options("--fault", "D47", "--jobs", "0"))


def test_a_lane_is_named_as_the_help_has_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options("--lane", "bf16").lane == "bfloat16"
    with pytest.raises(SystemExit):
        options("--lane", "float32")
    assert "invalid choice: 'float32' (choose from fp32, bf16, fp16)" in capsys.readouterr().err
    monkeypatch.setattr(catalogue, "FAULTS", [fault_of("D47")])
    monkeypatch.setattr(catalogue, "NEAR", [])
    with pytest.raises(UsageError, match=r"^--lane bf16: there is no such fault"):
        selftest.main(options("--lane", "bf16"))
