"""tools/bench.py as it runs: every side on small checkpoints, what fails, what differs, and what is interrupted."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import ROOT

from t5g2ref import streams
from t5g2ref.backend import NUMPY

sys.path.append(str(ROOT / "tools"))

import bench
from bench_rows import row
from benchmark import options
from benchmark.ceilings import Beside, Ceilings
from benchmark.counts import Lengths, bytes_moved, operations

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def ran(quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command, and reads what it wrote; what it printed is under "out"."""

    def run(*arguments: str, status: int = 0) -> dict[str, Any]:
        path = tmp_path / "bench.json"
        assert bench.main([*arguments, "--repeats=2", "--json", str(path)]) == status, capsys.readouterr()
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found | {"out": capsys.readouterr().out}

    return run


@pytest.fixture
def two_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second backend of ours on the same device: NumPy by another name."""
    other = copy.copy(NUMPY)
    other.name = "numpy-fast"
    monkeypatch.setattr(options, "find", lambda name: {"numpy": NUMPY, "numpy-fast": other}[name])


@pytest.mark.slow
def test_tiny_is_timed_on_all_sides(ran: Run, two_backends: None) -> None:
    what = [f"--what={item}" for item in ("encode", "forward", "decode", "vision", "load", "truth")]
    found = ran(*what, "--backend=numpy,numpy-fast", "--against=sdpa,eager")
    rows = {row["item"]: row for row in found["rows"]}
    assert list(rows) == ["encode", "forward", "decode", "vision", "load", "truth"]
    for item, one in rows.items():
        theirs = {"truth": [], "load": ["sdpa"]}.get(item, ["sdpa", "eager"])
        assert list(one["sides"]) == ["numpy", "numpy-fast", *theirs], item
        for side in one["sides"].values():
            assert (len(side["seconds"]), min(side["seconds"]) > 0, side["distance"] <= 1e-5) == (2, True, True), item
        assert (one["operations"] > 0) == (item != "load")
    assert found["complete"] is True
    assert "source 64, target 16" in found["out"]


@pytest.mark.slow
def test_lengths_and_batches_are_rows(ran: Run) -> None:
    found = ran("--what=encode", "--what=vision", "--lengths=6,9", "--batch=1,2", "--against=sdpa")
    seen = [(row["item"], row["source"], row["batch"]) for row in found["rows"]]
    assert seen == [
        (item, source, batch)
        for batch in (1, 2)
        for item, source in (("encode", 6), ("vision", 0), ("encode", 9))  # an image has no length
    ]
    assert all(row["sides"]["numpy"]["distance"] <= 1e-5 for row in found["rows"])


@pytest.mark.slow
def test_the_compiled_step_computes_the_same(ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import compiled

    monkeypatch.setattr(compiled, "SETTINGS", {"backend": "eager", "mode": None})  # Inductor takes half a minute
    monkeypatch.setattr(Lengths, "of", staticmethod(lambda config: Lengths(source=20, target=4, warm=3, steps=2)))
    found = ran("--what=encode", "--what=decode", "--against=compiled,sdpa", "--batch=2")
    encode, decode = found["rows"]
    assert list(encode["sides"]) == ["numpy", "sdpa"]
    assert encode["lacks"] == {"compiled": "it is measured in decoding alone, where shapes stay"}
    assert list(decode["sides"]) == ["numpy", "compiled", "sdpa"]
    assert max(side["distance"] for side in decode["sides"].values()) <= 1e-5
    assert "NOTE  encode by compiled: it is measured in decoding alone, where shapes stay" in found["out"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ctranslate2") is None, reason="needs ctranslate2: an engine beside ours")
def test_ctranslate2_is_a_column(ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Lengths(source=7, target=8, warm=5, steps=3)  # below its windows, which it ignores
    monkeypatch.setattr(Lengths, "of", staticmethod(lambda config: short))
    found = ran("--ckpt=tiny-released", "--against=sdpa,ctranslate2", "--batch=2")
    rows = {row["item"]: row for row in found["rows"]}
    for item in ("encode", "decode"):
        assert rows[item]["sides"]["ctranslate2"]["distance"] <= 1e-5, item
        assert min(rows[item]["sides"]["ctranslate2"]["seconds"]) > 0
    scored = rows["forward"]["sides"]["ctranslate2"][
        "distance"
    ]  # `score_batch` sees later ids: it is no NaN, and wrong
    assert 0.01 < scored < 1
    said = [remark.partition(",")[0] for remark in found["remarks"]]
    assert said == [
        "forward by ctranslate2: `score_batch`",
        "decode by ctranslate2: `translate_batch`",
        "vision by ctranslate2: it takes text alone",
    ]
    monkeypatch.setattr(Lengths, "of", staticmethod(lambda config: replace(short, target=16)))
    failed = ran("--ckpt=tiny-released", "--what=forward", "--against=sdpa,ctranslate2")
    assert failed["rows"][0]["lacks"] == {"ctranslate2": "failed"}, "16 ids are more than its window of 14"
    refused = ran("--what=encode", "--against=sdpa,ctranslate2")
    assert "asked 0.005, it has 0.002" in next(c["absent"] for c in refused["columns"] if c["name"] == "ctranslate2")


@pytest.mark.slow
def test_an_engine_that_is_not_there_is_an_empty_column(ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import ctranslate

    monkeypatch.setattr(ctranslate, "find_spec", lambda name: None)
    found = ran("--what=encode")
    assert list(found["rows"][0]["sides"]) == ["numpy", "sdpa"]
    assert 'NOTE  ctranslate2: not installed: pip install "t5g2ref[ctranslate2]"' in found["out"]


@pytest.mark.slow
def test_a_nan_and_a_failing_item_do_not_pass(ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.ours import Ours

    def failing(self: Ours) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Ours, "_encode", lambda self: np.full((1, 64, 48), np.nan, np.float32))
    monkeypatch.setattr(Ours, "_vision", failing)
    what = ("encode", "vision", "forward")
    found = ran(*(f"--what={item}" for item in what), "--against=sdpa", status=1)
    assert "WARNING  encode of 64 tokens in float32: numpy has distance nan" in found["out"]
    assert found["warnings"] == ["vision in float32 by numpy failed: MemoryError: no room"]
    encode, forward, vision = found["rows"]
    assert (encode["ratios"][0]["ratio"], forward["item"]) == (None, "forward")
    assert (list(vision["sides"]), vision["lacks"]) == (["sdpa"], {"numpy": "failed"}), "the other side is timed"


@pytest.mark.slow
def test_ours_is_timed_where_transformers_does_not_open(ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import items

    def failing(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(items, "Transformers", failing)
    found = ran("--what=encode", "--against=sdpa,eager", status=1)
    assert found["warnings"] == ["transformers in float32 failed: MemoryError: no room"]
    (only,) = found["rows"]
    assert (list(only["sides"]), only["reference"]) == (["numpy"], "numpy")
    assert only["lacks"] == {"sdpa": "failed", "eager": "failed"}


@pytest.mark.slow
def test_what_was_measured_is_kept_when_it_is_interrupted(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmark.ours import Ours

    path, seen = tmp_path / "bench.json", list[Any]()

    def stopped(self: Ours) -> None:
        seen.append(json.loads(path.read_text(encoding="utf-8")))  # it is there before anybody asks the command to end
        raise KeyboardInterrupt

    monkeypatch.setattr(Ours, "_forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--against=sdpa", "--repeats=1", "--json", str(path)])
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept == seen[0]
    assert ([row["item"] for row in kept["rows"]], kept["complete"]) == (["encode"], False)
    printed = capsys.readouterr()
    assert "WARNING  interrupted: what comes after the last row was not measured" in printed.out
    assert "encode of 64 tokens in float32: numpy " in printed.err
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_now_is_tried_again(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench_rows import result
    from benchmark import delivery

    path = tmp_path / "bench.json"
    kept = delivery.Delivery(options.options_of(options.parser().parse_args([f"--json={path}"])))
    full: list[OSError] = [OSError(28, "No space left on device")]
    write = delivery.write_text

    def once(*given: Any) -> None:
        if full:
            raise full.pop()
        write(*given)

    monkeypatch.setattr(delivery, "write_text", once)
    kept.so_far(result(row()))
    assert "bench.json could not be written yet: No space left on device" in capsys.readouterr().err
    kept.deliver()
    assert json.loads(path.read_text(encoding="utf-8"))["complete"] is True


def test_the_file_is_written_where_nobody_reads_the_tables(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench_rows import result
    from benchmark import delivery

    def unread(found: Any) -> None:
        raise streams.OutputError(32, "Broken pipe")

    monkeypatch.setattr(delivery, "show", unread)
    path = tmp_path / "bench.json"
    kept = delivery.Delivery(options.options_of(options.parser().parse_args([f"--json={path}"])), result(row()))
    with pytest.raises(streams.OutputError):
        kept.deliver()
    assert json.loads(path.read_text(encoding="utf-8"))["complete"] is True


def test_floors_follow_from_the_rates_beside_the_item(quick: Any) -> None:
    from test_bench import CONFIG, ENCODE

    lengths = Lengths(source=5, target=3, warm=2, steps=2, answer=3)
    asked, ceilings = options.options_of(options.parser().parse_args([])), Ceilings(8, {"float32": 1.0}, {}, 1.0)
    rates = Beside((1e9, 3e9), (4e9, 6e9))

    def floors(item: str, beside: Beside | None, source: int = 5, batch: int = 1) -> tuple[str, float, float]:
        found = quick.bounded(row(item, source=source, batch=batch, beside=beside), CONFIG, lengths, asked, ceilings)
        return found.bound, found.computing, found.moving

    moved = bytes_moved("encode", CONFIG, lengths, 4)
    assert floors("encode", rates) == ("operations", pytest.approx(ENCODE / 2e9), pytest.approx(moved / 5e9))
    slow = Beside((1e12, 3e12), (4e9, 6e9))
    assert floors("decode", slow)[0] == "bytes"
    longer = Lengths(source=7, target=3, warm=2, steps=2, answer=3, batch=2)
    assert floors("encode", rates, 7, 2)[1] == pytest.approx(operations("encode", CONFIG, longer) / 2e9)
    assert floors("encode", None)[1] == ENCODE, "without rates of its own those of the whole run, here 1 a second"
    assert quick.bounded(row("load", source=0), CONFIG, lengths, asked, ceilings) == row("load", source=0)


def test_busy_cores_and_other_kernels_are_said(quick: Any) -> None:
    assert quick._busy(0.3, 2) == "2 cores, load average 0.3 before the first item"
    assert "BUSY, do not quote these times" in quick._busy(0.6, 2)
    assert quick._chosen({"OPENBLAS_CORETYPE": "Haswell"})[0].startswith("OPENBLAS_CORETYPE=Haswell: ")
    assert quick._chosen({}) == []
