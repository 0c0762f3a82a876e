"""The self-test of the diagnosis: a sample of its trials, and that each way of being wrong is a failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from dumping import tiny

from conformance.commands import command_line as command
from conformance.defects.all import FAULTS
from conformance.judge.hypotheses.fit import FAR
from conformance.selftest import black_box
from conformance.selftest.black_box import GOOD, HIDDEN, MISSED, NAMED, WRONG, BlackBoxes, Told, singles
from conformance.selftest.diagnoses import Diagnoses


@pytest.fixture(scope="module")
def boxes() -> BlackBoxes:
    return BlackBoxes(tiny())


@pytest.mark.parametrize(("key", "what"), [("D17 after RoPE", NAMED), ("D54 many", HIDDEN), ("D18", NAMED)])
def test_a_sample_of_single_faults(boxes: BlackBoxes, key: str, what: str) -> None:
    fault = next(f for f in FAULTS if f.key == key)
    told = boxes.told(3, fault)
    assert told is not None
    assert told.what == what, told.line()


@pytest.mark.slow
def test_a_sample_of_pairs(boxes: BlackBoxes) -> None:
    told = next(t for i, pair in enumerate(boxes.pairs(1)) if (t := boxes.told(i, *pair)) is not None)
    assert told.what in GOOD, told.line()


def test_pairs_are_drawn_by_the_seed(boxes: BlackBoxes) -> None:
    keys = [(a.key, b.key) for a, b in boxes.pairs(50)]
    assert keys == [(a.key, b.key) for a, b in boxes.pairs(50)]
    assert keys != [(a.key, b.key) for a, b in boxes.pairs(50, seed=1)]
    assert len({a for a, _ in keys}) > 40
    assert all(a.split()[0] != b.split()[0] for a, b in keys)


def test_what_hides_behind_another_does_not_count(boxes: BlackBoxes) -> None:
    hidden, seen = (next(f for f in FAULTS if f.key == key) for key in ("D54 many", "D18"))
    assert boxes.told(0, hidden, seen) is None


def test_a_name_that_is_not_there_is_wrong(boxes: BlackBoxes) -> None:
    one, other = (next(f for f in FAULTS if f.key == key) for key in ("D18", "D32"))
    assert boxes._word((one,), [(other,)], [("D32",)]) == WRONG
    assert boxes._word((one,), [], []) == MISSED
    stale = next(f for f in FAULTS if f.key == "D07 head")
    assert boxes._word((stale,), [(other,)], [("D32",)]) == WRONG


def trials(what: str, count: int, keys: tuple[str, ...]) -> list[Told]:
    return [Told(keys, what, (("D01",),), 1.0) for _ in range(count)]


def test_each_way_of_being_wrong_is_a_failure() -> None:
    assert Diagnoses(trials(NAMED, 3, ("D01",)), trials(NAMED, 3, ("D01", "D02"))).failures() == []
    assert len(Diagnoses(alone=trials(WRONG, 1, ("D01",))).failures()) == 1
    assert len(Diagnoses(alone=trials(MISSED, 2, ("D01",))).failures()) == 2
    few = Diagnoses(pairs=[*trials(NAMED, 89, ("D01", "D02")), *trials(MISSED, 11, ("D01", "D02"))])
    assert few.failures() == ["89 of 100 pairs are named completely, expected 90%"]
    enough = Diagnoses(pairs=[*trials(NAMED, 90, ("D01", "D02")), *trials(MISSED, 10, ("D01", "D02"))])
    assert enough.failures() == []
    assert len(Diagnoses(pairs=[*trials(NAMED, 99, ("D01", "D02")), *trials(WRONG, 1, ("D01", "D02"))]).failures()) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    given = ["selftest", "--black-box", "--fault", "D18", "--no-progress", "--jobs", "1", "--json", str(out)]
    assert command.main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "VERDICT: CONFORMS (diagnosis of black boxes)"
    assert "1 faults through logits alone: 1 named" in lines
    assert [told["what"] for told in json.loads(out.read_text())["alone"]] == [NAMED]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--pairs", "3"], "it goes with --black-box"),
        (["--black-box", "--pairs", "-1"], "expected at least 0"),
        (["--black-box", "--fault", "D80"], "no fault of a float32 peer was chosen"),
    ],
)
def test_what_cannot_be_asked(capsys: pytest.CaptureFixture[str], more: list[str], words: str) -> None:
    assert command.main(["selftest", *more, "--no-progress"]) == 2
    assert words in capsys.readouterr().err


def test_every_fault_is_tried_once() -> None:
    keys = [fault.key for fault in singles()]
    assert len(keys) == len(set(keys)) > 140
    assert black_box.DRAWN == 200


def test_a_rounding_that_jumps_is_held_against_what_is_no_number(boxes: BlackBoxes) -> None:
    """D13 moves whole rows; a peer whose rows are NaN has nothing that could be moved."""
    jumps, broken = (next(f for f in singles() if f.key == key) for key in ("D13", "D41"))
    search = boxes._search(boxes._shown(0, (broken,)))
    fit = search.fit("padded-left", (jumps,))
    assert not fit.near
    assert fit.worst >= FAR
