"""tools/bench.py: what it counts, how it takes turns, what it prints, and that it notices when the sides differ."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from processes import ROOT
from rich.console import Console

from t5g2ref.config import Config, Rope, TextConfig, VisionConfig

sys.path.append(str(ROOT / "tools"))

import bench
from benchmark import counts, report, timing
from benchmark.ceilings import Ceilings

S, F = "sliding_attention", "full_attention"
ROPES = {S: Rope(10.0), F: Rope(100.0)}


def text(layers: tuple[str, ...], heads: int, kv: int, head_dim: int, ffn: int, window: int) -> TextConfig:
    sizes = (50, 8, ffn, len(layers), heads, kv, head_dim, 64, 1e-6, 1.0, window)
    return TextConfig(*sizes, layer_types=layers, rope_parameters=ROPES, pad_token_id=0)


CONFIG = Config(
    text((S, F), heads=4, kv=2, head_dim=6, ffn=16, window=3),
    text((S, F, S), heads=2, kv=1, head_dim=4, ffn=10, window=2),
    VisionConfig(12, 20, 2, 3, image_size=8, patch_size=2),
    mm_tokens_per_image=4,
    boi_token_index=47,
    eoi_token_index=48,
    image_token_index=49,
)

# By hand, D = 8, V = 50.
# Encoder, S = 5, N·H = 24, K·H = 12, F = 16. A layer's products: q, k, v 2·5·8·(24 + 24) = 3840, o 2·5·24·8 = 1920,
# MLP 3·2·5·8·16 = 3840. Pairs: W = 3 shows one key to each side, 2 + 3 + 3 + 3 + 2 = 13; the full layer 25.
ENCODE = 2 * 9600 + 4 * 24 * (13 + 25)  # 22848
# Decoder, T = 3, N·H = 8, K·H = 4, F = 10. Products: 2·3·8·(8 + 8) = 768, 2·3·8·8 = 384, 3·2·3·8·10 = 1440. Own pairs:
# W = 2 gives 1 + 2 + 2 = 5, the causal triangle 6; and 15 cross pairs. Cross k, v: 2·5·8·8 = 640. Logits: 2·3·8·50.
ANSWER = 3 * 2592 + 4 * 8 * (20 + 21 + 20) + 3 * 640 + 2400  # 14048
# Tower, P = 16, D = 12, F = 20, patch 3·2·2: 2·16·12·12 = 4608; a layer 2·16·(4·144 + 2·240) = 33792 and
# 4·16²·12 = 12288; projector 2·4·12·8 = 768.
VISION = 4608 + 2 * (33792 + 12288) + 768  # 97536
# A step's weights: a layer has 4 norms of 8, q 64, k 32, v 32, two head norms of 4, o 64, MLP 3·80; then the last norm
# and the table.
STEP_WEIGHTS = 3 * (32 + 64 + 32 + 32 + 8 + 64 + 240) + 8 + 400  # 1824


def test_operations_by_hand() -> None:
    lengths = counts.Lengths(source=5, target=3, warm=2, steps=2, answer=3)
    assert counts.operations("encode", CONFIG, lengths) == ENCODE == 22848
    assert counts.operations("forward", CONFIG, lengths) == ENCODE + ANSWER
    assert counts.answer(CONFIG, 5, 3) == ANSWER == 14048
    assert counts.operations("vision", CONFIG, lengths) == VISION == 97536


def test_the_truth_has_text_an_image_and_its_two_marks() -> None:
    lengths = counts.Lengths(source=5, target=3, answer=2)
    assert lengths.mixed(CONFIG) == 5 + 4 + 2
    expected = VISION + counts.encode(CONFIG, 11) + counts.answer(CONFIG, 11, 2)
    assert counts.operations("truth", CONFIG, lengths) == expected


def test_bytes_of_a_step_by_hand() -> None:
    # Cache behind 4 own positions: min(4, 2) + 5, 4 + 5 and min(4, 2) + 5 positions of 2·4 numbers.
    assert counts.step_bytes(CONFIG, source=5, own=4, itemsize=2) == 2 * (STEP_WEIGHTS + 8 * 23)
    lengths = counts.Lengths(source=5, warm=2, steps=2)  # steps that see 3 and then 4 own positions
    assert counts.decode_bytes(CONFIG, lengths, itemsize=4) == 4 * (2 * STEP_WEIGHTS + 8 * (22 + 23))


def test_only_a_toy_gets_short_lengths() -> None:
    assert counts.Lengths.of(CONFIG).source == 64
    assert counts.Lengths.of(Config.load(ROOT / "t5g2ref/checkpoint/bundled/tiny")).source == 64
    from t5g2ref.config import preset

    assert counts.Lengths.of(preset("270m")) == counts.Lengths(512, 128, 32, 16, 16)


def test_sides_take_turns_between_waits() -> None:
    seen: list[str] = []
    works = [
        timing.Work(
            run=lambda given, name=name: seen.append(f"{name}{given}"),
            sample=np.asarray,
            prepare=lambda name=name: seen.append(f"prepare {name}") or "!",
        )
        for name in "AB"
    ]
    sides = timing.interleaved(works, lambda: seen.append("wait"), 2, settle=0.0)
    turn = ["prepare A", "wait", "A!", "wait", "prepare B", "wait", "B!", "wait"]
    assert seen == turn * 2
    assert [len(side.seconds) for side in sides] == [len(side.cpu) for side in sides] == [2, 2]
    assert all(second >= 0 for side in sides for second in (*side.seconds, *side.cpu))


def test_a_trial_compares_the_checked_run() -> None:
    work = timing.Work(run=lambda _: 1.0, sample=np.asarray, check=lambda _: 2.0)
    meter = SimpleNamespace(start=lambda: None, read=lambda: 17)
    trial = timing.tried(work, meter, lambda: None)
    assert (float(trial.sample), trial.memory) == (2.0, 17)


@pytest.mark.parametrize(
    ("seconds", "asked", "repeats"), [(1.0, None, 5), (0.25, None, 16), (1e-4, None, 50), (1.0, 2, 2)]
)
def test_repeats(seconds: float, asked: int | None, repeats: int) -> None:
    assert timing.fitting(seconds, asked, 5) == repeats


def test_distance() -> None:
    a, b = np.array([3.0, 5.0]), np.array([3.0, 4.0])
    assert timing.distance(a, b) == 0.2
    assert math.isnan(timing.distance(np.array([np.nan, 4.0]), b))
    assert math.isnan(timing.distance(np.array([np.inf, 4.0]), np.array([np.inf, 4.0])))
    assert math.isnan(timing.distance(np.zeros(3), b)), "another shape is no small distance"


def test_the_pool_is_measured_above_what_was_in_use() -> None:
    pool = SimpleNamespace(free_all_blocks=lambda: None, used_bytes=lambda: 100, total_bytes=lambda: 130)
    meter = timing.PoolMeter(SimpleNamespace(pool=pool, scope=nullcontext))
    meter.start()
    assert meter.read() == 30


def row(item: str = "encode", distance: float = 1e-6, dtype: str = "float32", **changes: Any) -> report.Row:
    side = report.Timed([0.010, 0.012, 0.011, 0.013, 0.014], 3 << 20)
    values: dict[str, Any] = {"tokens": 1, "ours": side, "theirs": side, "bound": "GEMM", "floor": 0.006}
    return report.Row(item, dtype, distance=distance, **values | changes)


def result(*rows: report.Row, warnings: tuple[str, ...] = ()) -> report.Result:
    ceilings = Ceilings(8192, {"float32": 51e12, "bfloat16": 765e12}, {"float32": 3.9e12, "bfloat16": 3.8e12}, 4.27e12)
    versions = {"python": "3.12.3", "processor": "a name that is long enough to be wrapped at the end of a line " * 2}
    notes = ["weights: those of /a/folder/with [brackets]"]
    return report.Result("t", notes, list(rows), ceilings, [("bfloat16", 4 << 30, 4 << 30)], versions, list(warnings))


def shown(found: report.Result) -> str:
    out = io.StringIO()
    report.show(found, Console(file=out, width=report.WIDTH, highlight=False))
    return out.getvalue()


def test_the_table_fits_100_columns() -> None:
    slow = report.Timed([123.4567, 99.0, 250.0], 96 << 30)
    rows = [
        row(),
        row("decode", 0.021, "bfloat16", tokens=16, bound="copy", floor=0.003),
        row("forward", dtype="bfloat16", distance=0.01, ours=slow, theirs=slow, floor=100.0),
        row("load", 0.0, theirs=report.Timed([1.0], None), bound="", floor=math.nan),
        row("truth", 0.0, "float64", theirs=None),
    ]
    lines = shown(result(*rows)).splitlines()
    assert max(map(len, lines)) <= 100
    decode = next(line for line in lines if line.startswith("decode"))
    # 12 ms for 16 tokens; quartiles 11 and 13; 16 / 0.012 = 1333 tokens/s
    assert " ".join(decode.split()) == "decode bfloat16 0.750 8 0.750 8 1.00 1333 / 1333 0.188 25% copy 0.02"
    forward = next(line for line in lines if line.startswith("forward"))
    assert "123457" in forward
    assert "81% GEMM" in forward
    assert any("[brackets]" in line for line in lines)
    assert any("not known" in line for line in lines), "memory that could not be measured"
    assert not any("…" in line for line in lines), "a cell was cut"
    assert result(*rows).status == 0


@pytest.mark.parametrize(
    ("bad", "limit"),
    [
        (row(distance=math.nan), "0.01"),
        (row(distance=0.011), "0.01"),
        (row(distance=0.21, dtype="bfloat16"), "0.2"),
        (row("truth", math.nan, "float64", theirs=None), "0.01"),
    ],
)
def test_sides_that_differ_are_an_error(bad: report.Row, limit: str) -> None:
    found = result(row(), bad)
    assert found.status == 1
    output = shown(found)
    assert "!!" in output
    assert f"WARNING  {bad.item} in {bad.dtype}: distance {bad.distance:.2g}, expected at most {limit}" in output


def test_a_busy_machine_gives_no_ratio() -> None:
    found = result(row(others=0.04), row("forward", others=0.05))
    lines = shown(found).splitlines()
    quiet, busy = (next(line.split() for line in lines if line.startswith(item)) for item in ("encode", "forward"))
    assert (quiet[6], busy[6]) == ("1.00", "busy")
    assert "WARNING  forward in float32: others took 5% of the cores: its times are no findings" in shown(found)
    assert [one["ratio"] for one in json.loads(report.as_json(found))["rows"]] == [1.0, None]
    assert found.status == 0, "it was measured all the same"


def test_what_others_take_is_all_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, own = tmp_path / "stat", [0.0]
    ticks = timing.os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(timing.os, "times", lambda: (own[0], 0.0, 0.0, 0.0, 0.0))
    stat.write_text("cpu  10 0 0 100 0 0 0 0 0 0\ncpu0 ...\n")
    machine = timing.Others(stat)
    assert machine.share() is None, "no time has passed"
    own[0] = 30 / ticks  # 100 ticks passed, 50 of them in work, 30 in ours
    stat.write_text("cpu  20 5 25 140 10 2 3 5 0 0\n")
    assert machine.share() == pytest.approx(0.2)
    stat.write_text("nothing")
    assert machine.share() is None
    assert timing.Others(tmp_path / "missing").share() is None


def test_floors_follow_from_the_rates_beside_the_item() -> None:
    pytest.importorskip("torch")
    from benchmark import run
    from benchmark.ceilings import Beside

    lengths = counts.Lengths(source=5, target=3, warm=2, steps=2, answer=3)
    options, ceilings = bench.options_of(bench.parser().parse_args([])), Ceilings(8, {"float32": 1.0}, {}, 1.0)
    rates = Beside((1e9, 3e9), (4e9, 6e9))
    encode = run.bounded(row(beside=rates), CONFIG, lengths, options, ceilings)
    assert (encode.bound, encode.floor) == ("GEMM", pytest.approx(ENCODE / 2e9))
    decode = run.bounded(row("decode", beside=rates), CONFIG, lengths, options, ceilings)
    assert (decode.bound, decode.floor) == ("GEMV", pytest.approx(counts.decode_bytes(CONFIG, lengths, 4) / 5e9))
    assert run._chosen({"OPENBLAS_CORETYPE": "Haswell"})[0].startswith("OPENBLAS_CORETYPE=Haswell: ")
    assert run._chosen({}) == []


def test_a_verdict_is_timed_only_where_it_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import verdict

    sample = verdict.work().sample
    assert sample(0) == 0.0
    assert all(np.isnan(sample(status)) for status in (1, 2, 3))
    assert "verdict" not in bench.options_of(bench.parser().parse_args([])).items
    assert bench.options_of(bench.parser().parse_args(["--what", "verdict"])).items == ("verdict",)


def test_nothing_measured_and_what_failed_are_errors() -> None:
    assert result().status == 1
    assert "WARNING  nothing was measured" in shown(result())
    failed = result(row(), warnings=("load failed: OSError: disk full",))
    assert failed.status == 1
    assert "WARNING  load failed: OSError: disk full" in shown(failed)


def test_json_holds_every_repeat_and_no_bare_nan() -> None:
    document = json.loads(report.as_json(result(row(distance=math.nan))), parse_constant=lambda name: pytest.fail(name))
    assert document["rows"][0]["distance"] == "nan"
    assert document["rows"][0]["ours"]["seconds"] == [0.010, 0.012, 0.011, 0.013, 0.014]
    assert document["status"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "bfloat16"], "--dtype bfloat16: NumPy only emulates it"),
        (["--dtype", "float32", "--dtype", "float16"], "--dtype float16: NumPy only emulates it"),
        (["--what", "encoder"], "--what encoder: no such item; there are encode, forward"),
        (["--repeats", "0"], "--repeats 0: expected at least 1"),
        (["--backend", "cuda"], "no backend is called 'cuda'"),
    ],
)
def test_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--help"])
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    assert "python tools/bench.py --backend cupy" in output
    assert max(map(len, output.splitlines())) <= 100


def test_a_size_without_weights_is_synthetic_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(name: str, *, synthetic: bool, progress: Callable[..., None], backend: object) -> list[Any]:
        asked.append(synthetic)
        if not synthetic:
            raise bench.CheckpointError("not here")
        return [SimpleNamespace(name=name)]

    monkeypatch.setattr(bench, "resolve", resolve)
    options = bench.options_of(bench.parser().parse_args(["--ckpt", "270m"]))
    target, origin = bench.checkpoint(options, lambda *_: None)
    assert (target.name, asked) == ("270m", [False, True])
    assert origin == "weights: SYNTHETIC (seeded, at that geometry), for those of 270m are not on this machine"
    with pytest.raises(bench.CheckpointError, match="not here"):  # nothing is put in the place of a folder
        bench.checkpoint(bench.options_of(bench.parser().parse_args(["--ckpt", "/a/folder"])), lambda *_: None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, peer_installed: None) -> Any:
    """The real thing without its ceilings, which take seconds."""
    from benchmark import items, run

    rates = {"float32": 1e9, "float64": 1e9}
    monkeypatch.setattr(items, "beside", lambda *_: (2e9, 3e9))
    monkeypatch.setattr(run, "measure", lambda *_: Ceilings(8, rates, rates, 1e9))
    return run


@pytest.mark.slow
def test_tiny_is_timed_on_both_sides(quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    what = [f"--what={item}" for item in ("encode", "forward", "decode", "vision", "load", "truth")]
    assert bench.main([*what, "--repeats", "2", "--json", str(path)]) == 0, capsys.readouterr()
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [row["item"] for row in rows] == ["encode", "forward", "decode", "vision", "load", "truth"]
    for found in rows:
        sides = [found["ours"]] + ([] if found["item"] == "truth" else [found["theirs"]])
        assert all(len(side["seconds"]) == 2 and min(side["seconds"]) > 0 for side in sides)
        assert found["distance"] <= 1e-5, found["item"]
    assert "source 64, target 16" in capsys.readouterr().out


def test_busy_cores_are_said(quick: Any) -> None:
    assert quick._busy(0.3, 2) == "2 cores, load average 0.3 before the first item"
    assert "BUSY, do not quote these times" in quick._busy(0.6, 2)


@pytest.mark.slow
def test_a_nan_and_a_failing_item_do_not_pass(
    quick: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmark.ours import Ours

    def failing(self: Ours) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Ours, "_encode", lambda self: np.full((1, 64, 48), np.nan, np.float32))
    monkeypatch.setattr(Ours, "_vision", failing)
    what = ("encode", "vision", "forward")
    assert bench.main([*(f"--what={item}" for item in what), "--repeats=1"]) == 1
    output = capsys.readouterr().out
    assert "WARNING  encode in float32: distance nan" in output
    assert "WARNING  vision in float32 failed: MemoryError: no room" in output
    assert "\nforward  float32" in output, "what comes after a failure is measured all the same"
