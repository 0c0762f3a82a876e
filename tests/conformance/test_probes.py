"""probe: the rules of masking one pair at a time, what each probe changes, and healthy peers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from exact_findings import DEC, ENC, failed
from helpers import Array
from hypothesis import given
from hypothesis import strategies as st
from probing import examined, with_decoder

from conformance.cases import ingredients
from conformance.checkpoints import resolve
from conformance.judge.exact import probes as probe
from conformance.judge.exact.probes import Stage, chosen, decoder_sees, encoder_sees, probes, stages
from conformance.peers.find import create
from conformance.target import Target
from t5g2ref import masks, taps
from t5g2ref.config import preset

pytestmark = pytest.mark.slow  # minutes in all


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny-even", synthetic=False)[0]


# The rules


@given(window=st.none() | st.integers(1, 12), length=st.integers(1, 30))
def test_rules_one_pair_at_a_time(window: int | None, length: int) -> None:
    """The two windows, as the paper and the released code have them."""
    seen = encoder_sees(window, length), decoder_sees(window, length)
    assert [(m.shape, m.dtype) for m in seen] == [((length, length), bool)] * 2
    for q in range(length):
        for k in range(length):
            near = window is None or 0 <= q - k < (window + 1) // 2 or 0 < k - q < window // 2 + 1
            assert seen[0][q, k] == near
            assert seen[1][q, k] == (k <= q and (window is None or q - k < window))


@given(window=st.integers(1, 12))
def test_a_window_is_so_many_keys(window: int) -> None:
    assert encoder_sees(window, 40)[20].sum() == decoder_sees(window, 40)[20].sum() == window


def test_the_reference_has_the_same_rules(target: Target) -> None:
    """Two statements of one thing; `masks` is not read by `probe`."""
    at = np.arange(40)
    for part, ours, band in (
        (target.config.encoder, encoder_sees, masks.encoder_band),
        (target.config.decoder, decoder_sees, masks.decoder_band),
    ):
        for kind, window in zip(part.layer_types, probe.windows(part), strict=True):
            assert np.array_equal(ours(window, 40), band(part, kind).allows(at, at))
    assert not {"masks", "band"} & set(vars(probe))


def test_change_is_passed_on_by_valid_keys_and_kept_by_the_residual() -> None:
    sees = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)
    stage, all_valid = Stage("x", "decoder", 4, sees), np.ones((1, 3), bool)
    none, first = np.zeros(1, bool), np.array([[True, False, False]])

    def after(before: Array, valid: Array = all_valid, crossed: Array = none) -> list[bool]:
        return stage.after(before, valid, crossed)[0].tolist()  # type: ignore[no-any-return]

    assert after(first) == [True, True, False]
    assert after(first, ~first) == [True, False, False], "padding keeps its own change and gives it to nobody"
    assert after(first & False) == [False] * 3
    assert after(first & False, crossed=~none) == [True] * 3
    assert replace(stage, sees=None).after(first, all_valid, ~none).tolist() == first.tolist()


@pytest.mark.parametrize("name", ["tiny-even", "270m", "4b"])
def test_stages_are_taps_in_order(name: str, target: Target) -> None:
    config = target.config if name == "tiny-even" else preset(name)
    names = [stage.tap for stage in stages(config, probes(config)[1].case.runs[0])]
    declared = [tap.name for tap in taps.table(config, images=False)]
    assert names == [tap for tap in declared if tap in set(names)]
    assert len(set(names)) == len(names) == config.encoder.num_hidden_layers + config.decoder.num_hidden_layers + 7


# The probes


def test_positions_are_all_of_a_short_row_and_the_edges_of_a_long_one() -> None:
    assert chosen(5, 2) == [0, 1, 2, 3, 4]
    assert chosen(1283, 255) == [0, 641, 1026, 1027, 1282]
    sees = encoder_sees(512, 1283)
    assert (sees[1282, 1026], sees[1282, 1027]) == (False, True)
    assert chosen(515, 511) == [0, 2, 3, 257, 514]
    assert decoder_sees(512, 515)[514, 2:4].tolist() == [False, True]
    assert chosen(100, 99) == [0, 50, 99]


@pytest.mark.parametrize("name", ["tiny-even", "270m", "1b", "4b"])
def test_a_probe_changes_what_it_says_and_nothing_else(name: str, target: Target) -> None:
    config = target.config if name == "tiny-even" else preset(name)
    made = probes(config)
    assert [p.case.name for p in made][:2] == ["probe-encoder", "probe-decoder"]
    assert ("probe-images" in [p.case.name for p in made]) == (name == "tiny-even")
    for p in made:
        base, *others = p.case.runs
        assert len(others) == len(p.changes)
        for run, change in zip(others, p.changes, strict=True):
            assert np.array_equal(run.input_ids != base.input_ids, change.encoder)
            assert np.array_equal(run.decoder_input_ids != base.decoder_input_ids, change.decoder)
            assert (run.splits, run.logits_to_keep) == (base.splits, base.logits_to_keep)
            assert run.attention_mask is base.attention_mask
            assert run.decoder_attention_mask is base.decoder_attention_mask
            assert len(change.rows) == len(base.input_ids)
            for row, words in enumerate(change.rows):
                touched = any(part[row].any() for part in (change.encoder, change.decoder, change.images))
                assert touched == bool(words) or p.status == "exact"


@pytest.mark.parametrize("name", ["270m", "1b", "4b"])
def test_a_released_size_takes_a_few_dozen_forwards(name: str) -> None:
    made = probes(preset(name))
    assert sum(len(p.case.calls) for p in made) <= 45
    for p in made:
        for run in p.case.runs:
            assert run.input_ids.size + run.decoder_input_ids.size <= 2 * probe.BATCH_TOKENS + 200
            kept = run.logits_to_keep or max(last - first for first, last in run.bounds)
            assert len(run.input_ids) * kept * 262144 <= ingredients.LOGITS


def test_every_window_before_the_first_full_layer_can_be_seen() -> None:
    """270m has five: changing token 0, the fifth still leaves positions where they were."""
    config = preset("270m")
    run = probes(config)[0].case.runs[0]
    length = run.input_ids.shape[1]
    state, valid = np.arange(length)[None] == 0, np.ones((1, length), bool)
    layers = [stage for stage in stages(config, run) if stage.tap.startswith(f"{ENC}.layers.")]
    for stage in layers[:5]:
        state = stage.after(state, valid, np.zeros(1, bool))
        assert not state.all()
    assert layers[5].after(state, valid, np.zeros(1, bool)).all()


# Healthy peers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_reference_passes(dtype: str, target: Target) -> None:
    peer = create(f"t5g2ref:numpy:{dtype}")
    for p in probes(target.config):
        found = examined(peer, target, p.case.name)
        assert failed(found) == []
        assert all(f.tokens > 0 and f.detail.startswith(f"{p.case.name}: ") for f in found)
    assert len(found) == len(list(stages(target.config, p.case.runs[0])))


def test_what_could_not_have_failed_is_said(target: Target) -> None:
    found = {f.tap: f.detail for f in examined(create("t5g2ref:numpy:float32"), target, "probe-encoder")}
    assert "had to stay" in found[f"{ENC}.layers.0"]
    assert "everything is in reach, nothing could leak" in found[f"{ENC}.layers.1"]  # a full layer
    assert "everything is in reach" in found[f"{ENC}.layers.2"]
    assert "nothing had to move" in found[f"{DEC}.embed_tokens"]


def test_a_long_row_is_probed_one_run_a_position(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BATCH_TOKENS", 20)
    monkeypatch.setattr(probe, "ALL_POSITIONS", 10)
    monkeypatch.setattr(ingredients, "LOGITS", 20 * target.config.decoder.vocab_size)
    (p,) = [p for p in probes(target.config) if p.case.name == "probe-decoder"]
    assert {len(run.input_ids) for run in p.case.runs} == {1}
    assert p.case.runs[0].logits_to_keep == 16
    assert failed(examined(create("t5g2ref:numpy:float32"), target, "probe-decoder")) == []
    wrong = examined(with_decoder(+1), target, "probe-decoder")
    assert failed(wrong) == [(f"{DEC}.layers.{i}", "mask") for i in (0, 1)]
