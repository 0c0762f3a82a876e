"""Bounds and patterns operation by operation: a peer that lacks some taps has them wherever it shows what is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dumping import case_of, tiny

from conformance.activations import Dump
from conformance.cases.plan import plan_of
from conformance.defects.all import FAULTS
from conformance.defects.injection import HEALTHY, Injection, operation
from conformance.defects.rounding import grid
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.judge.operations import Operations
from conformance.measure.finding import Finding
from conformance.selftest.faulty_peer import FaultyPeer
from t5g2ref.dtypes import DType
from t5g2ref.numerics import Numerics

Wanted = Callable[[str], bool]
WITHOUT = ("mask", "cos", "sin", "q_rope", "k_rope")


def most(name: str) -> bool:
    """As a port that shows neither masks nor RoPE."""
    return name.rsplit(".", 1)[-1] not in WITHOUT


class Few(FaultyPeer):
    """A peer that keeps taps to itself."""

    def __init__(self, inject: Injection, dtype: DType, wanted: Wanted) -> None:
        super().__init__(inject, dtype=dtype)
        self._wanted, self.taps = wanted, ()

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        return super()._shown(dump, name, value) if self._wanted(name) else value


def judged(inject: Injection, case: str, wanted: Wanted, dtype: DType = "bfloat16") -> Judgement:
    target, peer = tiny("tiny"), Few(inject, dtype, wanted)
    chosen = case_of(target, case)
    peer.taps = tuple({tap.name for _, tap in plan_of(target.config, chosen) if wanted(tap.name)})
    peer.open(target)
    return judge(peer, target, chosen, repeat=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_legal_run_conforms_with_bounds_where_it_shows_what_is_read(dtype: DType) -> None:
    found = judged(HEALTHY, "padded-left-cached", most, dtype)
    assert found.passed, found.culprit
    bounded = {f.tap.rsplit(".", 1)[-1] for f in found.local if f.ceiling == f.ceiling}
    assert {"act_fn", "q_norm", "o_proj", "post_feedforward_layernorm"} <= bounded
    assert not {"attention", "keys"} & bounded, "RoPE lies before them, which nobody shows"
    assert max(f.ceiling for f in found.local if f.ceiling == f.ceiling) <= 1


@pytest.mark.parametrize("key", ["D11 bf16", "D12 bf16", "D52 bf16"])
def test_a_defect_of_rounding_is_named_without_masks_and_rope(key: str) -> None:
    (fault,) = (fault for fault in FAULTS if fault.key == key)
    found = judged(fault.inject, fault.case, most)
    assert {s.defect for s in found.named if s.named} == {fault.id}


def test_one_norm_shown_with_what_it_reads_is_enough() -> None:
    """The least that a peer may show, beside one activation with its input and one without."""
    least = (".embed_tokens", "inputs_embeds", ".norm", "logits")
    at = "encoder.text_model.layers.1.mlp"

    def wanted(name: str) -> bool:
        whole = name.endswith(least) or name.rsplit(".", 1)[-1].isdigit()
        return whole or name in (f"{at}.gate_proj", f"{at}.act_fn", "decoder.layers.1.mlp.act_fn")

    found = judged(HEALTHY, "short", wanted, "float32")
    bounded = [f.tap for f in found.local if f.ceiling == f.ceiling]
    assert found.passed
    assert f"{at}.act_fn" in bounded
    assert "decoder.layers.1.mlp.act_fn" not in bounded
    assert f"{at}.gate_proj" not in bounded


def test_what_cannot_be_gone_on_with_is_no_input() -> None:
    made_from = {(0, "a"): [], (0, "b"): [(0, "a")], (0, "c"): [(0, "b")], (0, "d"): [(0, "unseen")]}
    found = Operations(made_from, [(0, "a"), (0, "b"), (0, "c"), (0, "d")])
    assert [found.single((0, name)) for name in "abcd"] == [True, True, True, False]
    found.met(Finding("a", 0, "values"))
    assert found.single((0, "b")), "its own value is gone on with, however wrong"
    found.met(Finding("a", 0, "nan"))
    assert [found.single((0, name)) for name in "abcd"] == [True, False, True, False]
    assert not found.single((0, "no tap"))
    assert found
    assert not Operations(made_from, [(0, "c")])


def test_two_defects_at_one_operation_are_both_named() -> None:
    """RMSNorm in Llama's order with 1 + w in bfloat16 as well: each pattern is regressed beside the other."""

    def norm(_: Any, nx: Numerics, x: Any, weight: Any, eps: float) -> Any:
        x = nx.wide(x)
        scaled = grid(nx, x / nx.xp.sqrt(nx.mean(x * x) + eps), "bfloat16")
        return nx.cast(scaled * grid(nx, 1.0 + nx.wide(nx.weight(weight)), "bfloat16"))

    found = judged(operation(rms_norm=norm), "window", most)
    assert {s.defect for s in found.named if s.named} == {"D11", "D12"}
