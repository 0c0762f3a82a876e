"""What two readings with fresh eyes got past the judge, or were wrongly accused of: none of it does any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from dumping import case_of, tiny

from conformance.activations import Dump
from conformance.cases.plan import plan_of
from conformance.defects import rounding
from conformance.defects.injection import HEALTHY, Injection, Setting
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.measure import limits
from conformance.measure.ratio import examine
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref import ops
from t5g2ref import outputs as heads
from t5g2ref.config import TextConfig
from t5g2ref.dtypes import DType
from t5g2ref.numerics import EXACT, RUNNING, SDPA, Numerics
from t5g2ref.taps import Tap

Patterns = tuple[str, ...] | None


def judged(target: Target, case: str, injection: Injection, dtype: str = "float32", taps: Patterns = None) -> Judgement:
    peer = FaultyPeer(injection, target.backend, cast(DType, dtype))
    if taps is not None:
        peer.taps = taps
    peer.open(target)
    return judge(peer, target, case_of(target, case), repeat=False)


def shown(change: Callable[[int, str, Any], Any]) -> Injection:
    return Injection(taps=lambda _: change)


def twin(defect: str) -> Injection:
    def changed(s: Setting) -> Setting:
        return replace(s, nx=replace(s.nx, backend=s.nx.backend.with_twins(rounding.twins(defect, s.half))))

    return Injection(changed)


# A right peer


def loop(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The sum over the last axis as a plain loop makes it."""
    return np.asarray(np.add.accumulate(x, axis=-1, dtype=np.float32)[..., -1:])


def controls(operation: Callable[[Numerics], Any]) -> tuple[Any, list[Any]]:
    truth, *found = (np.asarray(operation(nx)) for nx in NUMERICS)
    return truth, found


NUMERICS = (Numerics("float64", EXACT), Numerics("float32", SDPA), Numerics("float32", RUNNING))


@pytest.mark.parametrize("width", [640, 1152, 2560])
def test_a_norm_that_sums_in_a_plain_loop_is_right(width: int) -> None:
    """The widths of the released checkpoints: with pairwise sums alone as a control it was at 13 to 26."""
    rng = np.random.default_rng(width)
    x, w = rng.normal(size=(1, 256, width)).astype(np.float32), rng.normal(0.5, 0.4, width).astype(np.float32)
    truth, found = controls(lambda nx: ops.rms_norm(nx, x.astype(nx.wide_dtype), w, 1e-6))
    scale = np.float32(1) / np.sqrt(loop(x * x) / np.float32(width) + np.float32(1e-6))
    peer = (x * scale * (np.float32(1) + w)).astype(np.float32)
    tap = Tap("decoder.layers.0.pre_self_attn_layernorm", "B T D", "all", "")
    assert examine(tap, 0, peer, truth, found, None, dtype="float32", limit=8.0).worst < 2
    twice = examine(tap, 0, peer * np.float32(1.0001), truth, found, None, dtype="float32", limit=8.0)
    assert not twice.passed


def test_a_loss_that_sums_in_a_plain_loop_is_right() -> None:
    rng = np.random.default_rng(1)
    logits, labels = (rng.normal(size=(1, 12, 32768)) * 3).astype(np.float32), rng.integers(0, 32768, (1, 12))
    truth, found = controls(lambda nx: heads.cross_entropy(nx, logits.astype(nx.wide_dtype), labels))
    top = logits.max(axis=-1, keepdims=True)
    picked = np.take_along_axis(logits, labels[..., None], axis=-1)
    peer = np.asarray((np.log(loop(np.exp(logits - top))) + top - picked).mean(), np.float32)
    assert examine(Tap("loss", "", "all", "loss"), 0, peer, truth, found, None, dtype="float32", limit=8.0).passed


# Wrong peers


@pytest.mark.parametrize("defect", ["D11", "D12", "D13", "D51", "D52"])
def test_a_hidden_mask_turns_nothing_off(defect: str) -> None:
    target = tiny()
    names = {tap.name for _, tap in plan_of(target.config, case_of(target, "window"))}
    found = judged(target, "window", twin(defect), "bfloat16", tuple(names - {"decoder.layers.6.self_attn.mask"}))
    assert found.deviates
    assert defect in {s.defect for s in found.named if s.named} or found.culprit is not None


@pytest.mark.parametrize("name", ["tiny", "tiny-even"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_made_from_the_last_hidden_states(name: str, dtype: str) -> None:
    """A peer that shows `lm_head` is not compared with what itself has there."""
    from t5g2ref import bundled

    target = tiny(str(bundled(name)))
    whole = judged(target, "short", shown(lambda call, tap, value: value), dtype)
    assert whole.passed
    assert whole.logits["kl_ratio"] < 2
    turned = judged(target, "short", shown(lambda _, tap, v: v[..., ::-1].copy() if tap == "lm_head" else v), dtype)
    assert turned.culprit is not None
    assert turned.culprit.tap == "lm_head"
    assert turned.logits["kl_ratio"] > 1000
    assert turned.logits["wrong"] > 0


@pytest.mark.parametrize("factor", [0.1, 0.15, 6.9])
def test_what_resembles_a_defect_is_not_called_by_its_name(factor: float) -> None:
    """Embeddings × 0.1 are nearly what D01 (no scale) leaves, and are not it."""
    target = tiny()
    scale = factor * target.config.encoder.hidden_size**-0.5 if factor > 1 else factor
    found = judged(
        target, "short", shown(lambda _, tap, v: v * v.dtype.type(scale) if tap.endswith("embed_tokens") else v)
    )
    assert found.deviates
    assert not [s.defect for s in found.named if s.named]


def test_a_fault_before_the_peer_raised_is_a_fault() -> None:
    class Late(FaultyPeer):
        def run(self, case: Any, dump: Dump) -> None:
            super().run(case, dump)
            dump._held[0].pop("encoder.text_model.rotary_emb.full_attention.cos")
            raise RuntimeError("at the very end")

    target = tiny()
    wrong = shown(lambda _, tap, v: v * 2 if tap == "decoder.layers.3.mlp.down_proj" else v)
    for injection, deviates in ((wrong, True), (HEALTHY, False)):
        peer = Late(injection, target.backend, "float32")
        peer.open(target)
        found = judge(peer, target, case_of(target, "short"), repeat=False)
        assert found.deviates is deviates
        assert not found.passed
        assert found.culprit is not None
        assert found.culprit.tap == (
            "decoder.layers.3.mlp.down_proj" if deviates else "encoder.text_model.rotary_emb.full_attention.cos"
        )


def test_what_noise_could_hide_is_unclear_in_float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNCLEAR_ERROR", 1e-9)  # for the control's own float32 error to be large
    found = judged(tiny(), "short", HEALTHY)
    assert found.unclear
    assert not found.passed
    assert not found.deviates


def test_softcapping_stands_where_the_logits_are_made() -> None:
    config = tiny().config
    assert isinstance(config.decoder, TextConfig)
    assert config.decoder.final_logit_softcapping is not None  # so that the test above has it under the truth


def narrow_in_heads(chosen: Callable[[Any], Any]) -> Injection:
    """bfloat16 scores and softmax (D51) in the query heads where `chosen` of their numbers is True."""

    def changed(s: Setting) -> Setting:
        wrong = rounding.twins("D51", s.half)["attention_weights"]

        def some_heads(definition: Any, nx: Numerics, q: Any, *rest: Any) -> Any:
            good, bad = definition(nx, q, *rest), wrong(definition, nx, q, *rest)
            few = np.asarray(chosen(np.arange(good.shape[1] * good.shape[2])))
            return np.where(few.reshape(1, good.shape[1], good.shape[2], 1, 1), bad, good).astype(good.dtype)

        return replace(s, nx=replace(s.nx, backend=s.nx.backend.with_twins({"attention_weights": some_heads})))

    return Injection(changed)


def test_a_part_of_a_defect_is_no_pass() -> None:
    """In a fifth of the heads: sure, and neither all of it nor none."""
    found = judged(tiny(), "window", narrow_in_heads(lambda head: head < max(1, len(head) // 5)), "bfloat16")
    assert not found.passed
    assert found.culprit is not None or [s.defect for s in found.partly] == ["D51"]
    assert judged(tiny(), "window", HEALTHY, "bfloat16").passed


def test_a_defect_of_one_head_is_named_there() -> None:
    found = judged(tiny(), "window", narrow_in_heads(lambda heads: heads == 1), "bfloat16")
    assert found.deviates
    named = [s for s in found.named if s.named]
    assert {(s.defect, s.head) for s in named} == {("D51", 1)}
    assert named[0].part.endswith(", head 1")
