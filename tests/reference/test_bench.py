"""tools/bench.py: what it counts, how it takes turns, and what can be asked of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from processes import ROOT

from t5g2ref.config import Config, Rope, TextConfig, VisionConfig

sys.path.append(str(ROOT / "tools"))

import bench
from benchmark import counts, options, ours, timing

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


# The encoder: a layer has 4 norms of 8, q and o 192, k and v 96, two head norms of 6, MLP 3·128; then the last norm.
ENCODER = 2 * (32 + 2 * 192 + 2 * 96 + 12 + 384) + 8  # 2016
# The tower: patches 12·12 + 12, positions 16·12; a layer 2·24 of norms, 4·(144 + 12), 240 + 20, 240 + 12; its last norm
# 24; the projector's 12·8 and its norm of 12.
EYES = 156 + 192 + 2 * (48 + 624 + 260 + 252) + 24 + 108  # 2848


def test_bytes_that_are_moved_by_hand() -> None:
    one = counts.Lengths(source=5, target=3, warm=2, steps=2, answer=3)
    two = replace(one, batch=2)
    moved = {item: [counts.bytes_moved(item, CONFIG, n, 4) // 4 for n in (one, two)] for item in options.PAIRED}
    assert moved == {
        "encode": [ENCODER + 2 * 5 * 8, ENCODER + 2 * 10 * 8],
        "forward": [ENCODER + STEP_WEIGHTS + 5 * 8 + 3 * 50, ENCODER + STEP_WEIGHTS + 10 * 8 + 6 * 50],
        "decode": [2 * STEP_WEIGHTS + 8 * (22 + 23), 2 * STEP_WEIGHTS + 2 * 8 * (22 + 23)],
        "vision": [EYES + 192 + 4 * 8, EYES + 2 * (192 + 4 * 8)],  # an image has 3·8·8 numbers
    }


def test_operations_of_steps_by_hand_and_of_a_batch() -> None:
    # One token: 864 a layer, a third of ANSWER's; 22 and 23 pairs, as in the cache above; logits 2·8·50.
    steps = 2 * (3 * 864 + 800) + 4 * 8 * (22 + 23)
    lengths = counts.Lengths(source=5, target=3, warm=2, steps=2, answer=3)
    assert counts.operations("decode", CONFIG, lengths) == steps == 8224
    for item in options.PAIRED:
        alone, eight = (counts.operations(item, CONFIG, replace(lengths, batch=batch)) for batch in (1, 8))
        assert eight == 8 * alone, item


def test_a_batch_has_rows_of_its_own() -> None:
    drawn = ours.Inputs.draw(CONFIG, counts.Lengths(source=5, target=3, warm=2, steps=2, batch=3))
    assert (drawn.source.shape, drawn.steps.shape, drawn.pixels.shape) == ((3, 5), (3, 2), (3, 3, 8, 8))
    assert drawn.mixed.shape == (1, 5 + 4 + 2), "the truth has one row"
    assert (drawn.source[:, 0] == CONFIG.decoder.bos_token_id).all()
    assert len({tuple(row) for row in drawn.source.tolist()}) == 3


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


def test_a_trial_that_is_not_checked_is_the_run_that_is_timed() -> None:
    work = timing.Work(run=lambda _: seen.append("run"), sample=np.asarray, check=lambda _: seen.append("check"))
    seen: list[str] = []
    meter = SimpleNamespace(start=lambda: None, read=lambda: 17)
    assert timing.tried(work, meter, lambda: None, checked=False).sample.size == 0
    assert seen == ["run"]


def test_a_side_may_clock_a_part_of_its_run() -> None:
    work = timing.Work(run=lambda _: timing.Clocked(7.0, 9.0), sample=np.asarray)
    (taken,) = timing.interleaved([work], lambda: None, 2, settle=0.0)
    assert (taken.seconds, taken.cpu) == ([7.0, 7.0], [9.0, 9.0])


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


def test_a_verdict_is_timed_only_where_it_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import verdict

    sample = verdict.work().sample
    assert sample(0) == 0.0
    assert all(np.isnan(sample(status)) for status in (1, 2, 3))
    assert "verdict" not in bench.options_of(bench.parser().parse_args([])).items
    assert bench.options_of(bench.parser().parse_args(["--what", "verdict"])).items == ("verdict",)


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
