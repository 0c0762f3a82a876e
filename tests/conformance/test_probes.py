"""probe and moves: the rules against FACTS one pair at a time, and peers with wrong masks, which must be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Array
from hypothesis import given
from hypothesis import strategies as st

from conformance.activations import Dump
from conformance.cases import ingredients
from conformance.checkpoints import resolve
from conformance.judge.exact import probes as probe
from conformance.judge.exact.moves import examine_probe
from conformance.judge.exact.probes import Change, Probe, Stage, chosen, decoder_sees, encoder_sees, probes, stages
from conformance.measure.finding import FAULTS, Finding
from conformance.peers.find import create
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref import encoder, masks, taps
from t5g2ref.backend import NUMPY
from t5g2ref.config import Config, preset
from t5g2ref.model import T5Gemma2

pytestmark = pytest.mark.slow  # minutes in all

ENC, DEC = "encoder.text_model", "decoder"


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny-even", synthetic=False)[0]


def examined(peer: Any, target: Target, name: str, **keywords: Any) -> list[Finding]:
    """Findings of the named probe on this peer, opened."""
    (found,) = [p for p in probes(target.config) if p.case.name == name]
    peer.open(target)
    return examine_probe(peer, target, peer.dtype, found, **keywords)[0]


def failed(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.tap, f.status) for f in findings if not f.passed]


# The rules


@given(window=st.none() | st.integers(1, 12), length=st.integers(1, 30))
def test_rules_one_pair_at_a_time(window: int | None, length: int) -> None:
    """FACTS, Text 7 and 8, as they stand there."""
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


# Peers with wrong masks


class Other(ReferencePeer):
    """The reference with another configuration than the checkpoint's."""

    def __init__(self, change: Callable[[Config], Config], dtype: Any = "float32") -> None:
        super().__init__(NUMPY, dtype)
        self._change = change

    def open(self, target: Target) -> None:
        super().open(replace(target, config=self._change(target.config)))


def with_decoder(wider: int, dtype: str = "float32") -> Other:
    def change(config: Config) -> Config:
        part = config.decoder
        return replace(config, decoder=replace(part, sliding_window=part.sliding_window + wider))

    return Other(change, dtype)


class Patched(ReferencePeer):
    """The reference with something of it replaced while it runs as the peer, and not when it is the judge's."""

    def __init__(self, place: Any, name: str, wrong: Callable[[Any], Any], dtype: Any = "float32") -> None:
        super().__init__(NUMPY, dtype)
        self._replacing = place, name, wrong(getattr(place, name))

    def run(self, case: Any, dump: Dump) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*self._replacing)
            super().run(case, dump)


def with_band(change: Callable[[masks.Band], masks.Band], *, everywhere: bool = False) -> Patched:
    """Another rule in the encoder's sliding layers, or in all of them."""

    def wrong(true: Any) -> Any:
        def band(config: Any, kind: str) -> masks.Band:
            found: masks.Band = true(config, kind)
            return change(found) if everywhere or kind.startswith("sliding") else found

        return band

    return Patched(encoder, "encoder_band", wrong)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wider", [-1, +1])
def test_decoder_window_off_by_one(wider: int, dtype: str, target: Target) -> None:
    found = examined(with_decoder(wider, dtype), target, "probe-decoder")
    # the two sliding layers before the first full one, each by itself; a rounding may hide what comes to the second
    both = [(f"{DEC}.layers.{i}", "mask") for i in (0, 1)]
    assert failed(found) == both or (dtype == "bfloat16" and failed(found) == both[:1])
    window = target.config.decoder.sliding_window
    words = {
        -1: f"changing decoder token 0 did not move position {window - 1}, which sees it",
        +1: f"changing decoder token 0 moved position {window}, which is out of its reach",
    }
    detail = next(f.detail for f in found if not f.passed)
    assert words[wider] in detail
    assert failed(examined(with_decoder(wider, dtype), target, "probe-encoder")) == []


@pytest.mark.parametrize(
    ("back", "ahead", "words"),
    [(-1, 0, "did not move"), (1, 0, "moved"), (0, -1, "did not move"), (0, 1, "moved")],
)
def test_encoder_window_off_by_one_on_one_side(back: int, ahead: int, words: str, target: Target) -> None:
    peer = with_band(lambda band: masks.Band(band.back + back, band.ahead + ahead))  # type: ignore[operator]
    found = examined(peer, target, "probe-encoder")
    assert failed(found) == [(f"{ENC}.layers.0", "mask")]
    wrong = next(f for f in found if not f.passed)
    assert f" {words} position " in wrong.detail


def test_encoder_causal(target: Target) -> None:
    found = examined(with_band(lambda band: replace(band, ahead=0), everywhere=True), target, "probe-encoder")
    assert failed(found) == [(f"{ENC}.layers.{i}", "mask") for i in range(target.config.encoder.num_hidden_layers)]
    wrong = next(f for f in found if not f.passed)
    assert "changing encoder token 1 did not move position 0, which sees it" in wrong.detail


def test_pattern_of_layers_shifted(target: Target) -> None:
    """Layer 0 full and layer 1 sliding: the first leaks, the second is blind to nothing more, as all has moved."""
    kinds = target.config.encoder.layer_types
    shifted = Other(lambda c: replace(c, encoder=replace(c.encoder, layer_types=(*kinds[1:], kinds[0]))))
    assert failed(examined(shifted, target, "probe-encoder")) == [(f"{ENC}.layers.0", "mask")]


class Deaf(ReferencePeer):
    """Is not told of something that its inputs hold."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__(NUMPY, "float32")
        self._change = change

    def run(self, case: Any, dump: Dump) -> None:
        super().run(replace(case, runs=tuple(map(self._change, case.runs))), dump)


def test_encoder_padding_ignored(target: Target) -> None:
    found = examined(Deaf(lambda run: replace(run, attention_mask=None)), target, "probe-padding")
    wrong = failed(found)
    assert wrong == [(f"{ENC}.layers.0", "mask")]  # from there on everything has moved for a reason
    assert "changing the right padding moved position" in next(f.detail for f in found if not f.passed)


def test_padding_ignored_in_the_cross_half(target: Target) -> None:
    def started(true: Any) -> Any:
        return lambda self, encoded, trace: true(self, replace(encoded, valid=encoded.valid | True), trace)

    found = examined(Patched(T5Gemma2, "start", started), target, "probe-padding")
    assert failed(found) == [(f"{DEC}.layers.0", "mask")]


@pytest.mark.parametrize("kept", [slice(-14, None), slice(None, 14)])
def test_cross_half_cut_by_the_window(kept: slice, target: Target) -> None:
    """Seen by the probe whose one source token is far away, and by no other: elsewhere a near one passes it on."""

    def started(true: Any) -> Any:
        def start(self: Any, encoded: Any, trace: Any) -> Any:
            valid = np.zeros_like(encoded.valid)
            valid[:, kept] = encoded.valid[:, kept]
            return true(self, replace(encoded, valid=valid), trace)

        return start

    peer = Patched(T5Gemma2, "start", started)
    found = examined(peer, target, "probe-cross")
    assert failed(found) == [(f"{DEC}.layers.{i}", "mask") for i in range(target.config.decoder.num_hidden_layers)]
    first = "encoder token 0" if kept.start else "encoder token 50"
    assert f"changing {first} did not move position 0, which sees it" in next(f.detail for f in found if not f.passed)
    assert failed(examined(peer, target, "probe-encoder")) == []


def test_decoder_padding_ignored(target: Target) -> None:
    found = examined(Deaf(lambda run: replace(run, decoder_attention_mask=None)), target, "probe-padding")
    assert failed(found)[0] == (f"{DEC}.layers.0", "mask")
    assert "changing the left padding moved position 5" in next(f.detail for f in found if not f.passed)


def test_positions_counted_from_the_mask(target: Target) -> None:
    """Left padding shifts them where none are given (D29), which shows against the given ones."""

    def counted(run: Any) -> Any:
        if run.position_ids is not None or run.attention_mask is None:
            return run
        return replace(run, position_ids=np.maximum(run.attention_mask.cumsum(1) - 1, 0))

    found = examined(Deaf(counted), target, "probe-positions")
    wrong = [f for f in found if not f.passed]
    assert (wrong[0].tap, wrong[0].status) == (f"{ENC}.layers.0", "exact")
    assert "changing how positions are given (left padding) moved position 5; " in wrong[0].detail
    assert "right padding" not in wrong[0].detail


def test_given_positions_ignored(target: Target) -> None:
    """By a peer that counts from 1: only what is given is right."""
    ignored = Deaf(lambda run: replace(run, position_ids=None, decoder_position_ids=None))
    assert failed(examined(ignored, target, "probe-positions")) == [], "counted as they are given: cannot be seen"

    def from_one(run: Any) -> Any:
        given = run.decoder_position_ids
        counted = np.arange(run.decoder_input_ids.shape[1])[None].repeat(len(run.decoder_input_ids), 0)
        return replace(run, decoder_position_ids=counted + 1 if given is None else given)

    assert failed(examined(Deaf(from_one), target, "probe-positions"))[0] == (f"{DEC}.layers.0", "exact")


def test_pictures_in_the_wrong_place(target: Target) -> None:
    swapped = Deaf(lambda run: run if run.pixel_values is None else replace(run, pixel_values=run.pixel_values[::-1]))
    found = examined(swapped, target, "probe-images")
    assert failed(found) == []  # of three, the middle one stays where it is
    turned = Deaf(
        lambda run: run if run.pixel_values is None else replace(run, pixel_values=run.pixel_values[[1, 0, 2]])
    )
    found = examined(turned, target, "probe-images")
    assert failed(found) == [(f"{ENC}.inputs_embeds", "mask")]
    assert "changing picture 1 moved position" in next(f.detail for f in found if not f.passed)


# Peers that show something else


class Altered(ReferencePeer):
    """What it shows is changed on the way into the dump."""

    def __init__(self, alter: Callable[[int, str, Any], Any]) -> None:
        super().__init__(NUMPY, "float32")
        self._alter = alter

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        shown = self._alter(dump.calls - 1, name, value)
        if shown is not None:
            dump.put(name, shown)
        return value


AT = f"{ENC}.layers.3"


def at(tap: str, change: Callable[[int, Any], Any]) -> Altered:
    return Altered(lambda call, name, value: change(call, value.copy()) if name == tap else value)


def put(value: Any, index: Any, number: float) -> Any:
    value[index] = number
    return value


@pytest.mark.parametrize("stage", [f"{ENC}.embed_tokens", AT, f"{DEC}.norm", "logits"])
@pytest.mark.parametrize(
    ("status", "change"),
    [
        ("missing", lambda call, value: None),
        ("missing", lambda call, value: None if call == 1 else value),
        ("nan", lambda call, value: put(value, (0, 0, 0), np.nan)),
        ("nan", lambda call, value: put(value, (0, 0, 0), np.inf) if call == 2 else value),
        ("nan", lambda call, value: np.full_like(value, np.nan)),
        ("shape", lambda call, value: value[:, :-1]),
        ("shape", lambda call, value: value[:, :, :-1]),
        ("shape", lambda call, value: value[:, :-1] if call == 2 else value),
        ("shape", lambda call, value: value.swapaxes(0, 1)),
        ("shape", lambda call, value: value[0]),
        ("shape", lambda call, value: value[:0]),
        ("dtype", lambda call, value: value.astype(np.float64)),
        ("dtype", lambda call, value: value.astype(np.float16) if call == 1 else value),
        ("mask", lambda call, value: np.zeros_like(value)),
    ],
)
def test_what_is_not_there_is_no_pass(stage: str, status: str, change: Any, target: Target) -> None:
    found = examined(at(stage, change), target, "probe-encoder")
    wrong = {f.tap: f for f in found if not f.passed}
    assert wrong[stage].status == status
    assert status in FAULTS
    assert wrong[stage].detail.startswith("probe-encoder: ")


def test_places_that_the_peer_does_not_show_are_passed_over(target: Target) -> None:
    """With the last place before it that it does show: the wrong mask of layer 1 is found at layer 2."""
    shown = {f"{ENC}.embed_tokens", f"{ENC}.norm", f"{DEC}.embed_tokens", f"{DEC}.layers.1", "logits"}
    few = with_decoder(+1)
    found = examined(few, target, "probe-decoder", shown=lambda name: name in shown)
    assert [f.tap for f in found] == [s.tap for s in stages(target.config, few_run(target)) if s.tap in shown]
    assert failed(found) == [(f"{DEC}.layers.1", "mask")]
    assert failed(examined(few, target, "probe-encoder", shown=lambda name: name in shown)) == []
    found = examined(Altered(lambda call, name, value: None), target, "probe-decoder", shown=lambda name: name in shown)
    assert failed(found) == [(f.tap, "missing") for f in found]


def few_run(target: Target) -> Any:
    return probes(target.config)[1].case.runs[0]


def test_an_unsteady_peer_is_no_leak(target: Target) -> None:
    rng = np.random.default_rng(0)
    noisy = at(AT, lambda call, value: value + rng.normal(size=value.shape).astype(np.float32))
    found = examined(noisy, target, "probe-encoder")
    wrong = {f.tap: f for f in found if not f.passed}
    assert wrong[AT].status == "missing"
    assert "the same input twice gave other bits" in wrong[AT].detail


def test_rows_that_depend_on_rows(target: Target) -> None:
    mixed = at(AT, lambda call, value: value + value.mean(axis=0, keepdims=True))
    found = examined(mixed, target, "probe-encoder")
    wrong = next(f for f in found if not f.passed)
    assert (wrong.tap, wrong.status) == (AT, "mask")
    assert "nothing was changed: rows depend on each other" in wrong.detail


def test_a_tap_given_twice(target: Target) -> None:
    class Twice(ReferencePeer):
        def _shown(self, dump: Dump, name: str, value: Any) -> Any:
            dump.put(name, value)
            return super()._shown(dump, name, value)

    with pytest.raises(ValueError, match=r"tap encoder\.text_model\.embed_tokens was given twice in call 0 of run 0"):
        examined(Twice(NUMPY, "float32"), target, "probe-encoder")


def test_a_change_that_a_rounding_may_hide_is_no_fault(target: Target) -> None:
    """bfloat16 with an encoder whose tokens hardly look at each other: the reference itself hardly moves there, and so
    a peer that stands still is not blind; but one that stands still where the truth is far away is."""
    weights = dict(target.weights)
    for name in list(weights):
        if name.startswith(f"{ENC}.layers.0.") and name.endswith("o_proj.weight"):
            weights[name] = weights[name] * np.float32(2.0**-40)
    quiet = f"{ENC}.layers.0.post_self_attn_layernorm.weight"
    weights[quiet] = np.full_like(weights[quiet], -1 + 2.0**-7)
    dull = replace(target, weights=weights)
    found = {f.tap: f for f in examined(create("t5g2ref:numpy:bfloat16"), dull, "probe-encoder")}
    assert failed(list(found.values())) == []
    assert "too faint to be seen in this precision" in found[f"{ENC}.layers.0"].detail
    still = at(f"{ENC}.layers.1", lambda call, value: value * 0)
    wrong = failed(examined(still, dull, "probe-encoder"))
    assert (f"{ENC}.layers.1", "mask") in wrong


def test_a_probe_without_anything_to_test_is_no_pass(target: Target) -> None:
    """All rows unchanged: an empty comparison."""
    (p,) = [p for p in probes(target.config) if p.case.name == "probe-padding"]
    none = Change(
        *(np.zeros_like(part) for part in (p.changes[0].encoder, p.changes[0].decoder)), p.changes[0].images, ("", "")
    )
    empty = Probe(replace(p.case, runs=(p.case.runs[0],) * 2), (none,), "nothing")
    peer = create("t5g2ref:numpy:float32")
    peer.open(target)
    found, _ = examine_probe(peer, target, "float32", empty)
    assert {f.status for f in found} == {"missing"}
