"""Names: faults put into transformers, of which only the dump is seen, and limits of what a pattern may claim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: the faults are injected into transformers")
pytest.importorskip("transformers", reason="needs transformers: the faults are injected into it")

import transformers_faults as foreign

from conformance.activations import Dump
from conformance.cases import catalogue as cases
from conformance.checkpoints import resolve
from conformance.defects.all import FAULTS
from conformance.defects.catalogue import DEFECTS
from conformance.defects.injection import joined, stacks
from conformance.judge import name_defect as naming
from conformance.judge.judge import judge
from conformance.measure.finding import Finding
from conformance.selftest.faulty_peer import FaultyPeer
from t5g2ref.dtypes import DType

pytestmark = [pytest.mark.peer, pytest.mark.slow]  # minutes in all

NAMES = {
    "cross keys rotated": {"D24"},
    "+ 1 dropped from one norm": {"D09"},
    "window one short on the left": {"D31"},
    "window one long on the right": {"D31"},
    "EOI row scaled": {"D05"},
    "theta exchanged": {"D19"},
    "erf GELU": {"D52"},
    "encoder causal": {"D35"},
    "window over the cross half": {"D37"},
    "gate and up exchanged": {"D53"},
    "image features scaled": {"D04"},
    "padding dropped in the cross half once cached": {"D39"},
    "decoder padding dropped once cached": {"D42"},
    "given positions ignored with a cache": {"D28"},
    "pooled at the count of tokens": {"D64"},
    "logits of the first positions": {"D81"},
}
"""The others are nothing that the catalogue could know the value of: a NaN, a stale copy, one weight, zeros for ids."""


@pytest.fixture(scope="module")
def target() -> Any:
    return resolve("tiny", synthetic=False)[0]


@pytest.mark.parametrize("fault", foreign.FAULTS, ids=lambda f: f.name)
def test_transformers_with_a_fault(fault: Any, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = foreign.Faulty(fault.inject, monkeypatch)
    peer.open(target)
    (case,) = cases.select(cases.build(target.config), [fault.case])
    result = judge(peer, target, case, repeat=False)
    assert {s.defect for s in result.named if s.named} == NAMES.get(fault.name, set())


def test_every_name_is_asked_for() -> None:
    assert NAMES.keys() <= {fault.name for fault in foreign.FAULTS}


def fault_of(key: str) -> Any:
    return next(f for f in FAULTS if f.key == key)


def judged(inject: Any, target: Any, name: str) -> Any:
    peer = FaultyPeer(inject)
    peer.open(target)
    (case,) = cases.select(cases.build(target.config), [name])
    return judge(cast(Any, peer), target, case, repeat=False)


def test_two_faults_at_one_tap_are_neither(target: Any) -> None:
    both = joined(fault_of("X40").inject, fault_of("D47").inject)
    result = judged(both, target, "short")
    assert result.culprit.tap == fault_of("D47").tap
    assert not any(s.named for s in result.named)
    assert {s.verdict for s in result.named if s.defect != "D47"} <= {"absent", "no power"}


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("D67", "D19"),  # the same tables under the same names, for other layers
        ("D19 tables", "D67"),
        ("D72 encoder", "D38"),  # the same in the first layer, but not in those without a window
        ("D76 scale", "D01"),  # the same in this call, but not in the one before
        ("D54 many", "D69"),  # the same length, but one call later another
    ],
)
def test_what_is_alike_at_one_tap_is_told_apart_by_the_others(key: str, other: str, target: Any) -> None:
    fault = fault_of(key)
    verdicts = {s.defect: s for s in judged(fault.inject, target, fault.case).named}
    assert {d for d, s in verdicts.items() if s.named} == {fault.id}
    assert verdicts[other].verdict == "absent"
    assert verdicts[other].residual < 1e-3, "at the culprit it fits as well"


def test_what_nothing_tells_apart_is_named_twice(target: Any) -> None:
    """Without padding, no window and a window that is left out with the mask are one and the same."""
    result = judged(fault_of("D32").inject, target, "window")
    assert {s.defect for s in result.named if s.named} == {"D32", "D69"}


def test_no_power_is_said(target: Any) -> None:
    """A source of fewer tokens than the window cannot tell one that is laid over it from none."""
    result = judged(fault_of("D43 mask").inject, target, "equal-lengths")
    verdicts = {s.defect: s.verdict for s in result.named}
    assert verdicts["D43"] == "named"
    assert verdicts["D37"] == "no power"


@pytest.mark.parametrize(
    ("noise", "verdict", "dtype"),
    [
        (0.05, "named", "bfloat16"),
        (0.5, "akin", "bfloat16"),
        (0.9, "absent", "bfloat16"),
        (1e-4, "named", "float32"),
        (0.05, "akin", "float32"),
    ],
)
def test_a_pattern_explains_nearly_all(noise: float, verdict: str, dtype: DType) -> None:
    rng = np.random.default_rng(1)
    pattern = rng.normal(size=(40, 8))
    other = rng.normal(size=(40, 8)) * noise
    found = naming._regressed(_signature, "D46", pattern, pattern + other, 10.0, dtype)
    assert found.verdict == verdict
    assert found.coefficient == pytest.approx(1, abs=0.1)
    assert abs(found.coefficient - 1) < 5 * found.error
    assert found.residual == pytest.approx(noise / (1 + noise**2) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("times", "half", "single"),
    [
        (1.0, "named", "named"),
        (0.9995, "named", "named"),
        (0.99, "named", "akin"),
        (0.95, "named", "akin"),
        (0.8, "akin", "akin"),
        (-1.0, "akin", "akin"),
    ],
)
def test_the_coefficient_has_to_be_one(times: float, half: str, single: str) -> None:
    pattern = np.random.default_rng(1).normal(size=(40, 8))
    assert naming._regressed(_signature, "D46", pattern, times * pattern, 10.0, "bfloat16").verdict == half
    assert naming._regressed(_signature, "D46", pattern, times * pattern, 10.0, "float32").verdict == single


def test_a_single_number_has_to_fit_closer() -> None:
    one = np.ones((1, 1))
    assert naming._regressed(_signature, "D65", one, 1.04 * one, 10.0, "float32").verdict == "absent"
    assert naming._regressed(_signature, "D65", one, 1.001 * one, 10.0, "float32").verdict == "named"


def _signature(defect: str, verdict: str, coefficient: float, residual: float, error: float = 0.0) -> Any:
    return naming.Signature(defect, "tap", coefficient, error, residual, verdict)


def test_clearly_worse_fits_are_not_named() -> None:
    signatures = [_signature("D46", "named", 1.0, r) for r in (1e-9, 5e-7, 1e-2)]  # two below the rounding
    assert [s.verdict for s in naming._best(signatures, 8 * 2.0**-24)] == ["named", "named", "absent"]


def test_one_pattern_is_akin_and_none_beside_a_name() -> None:
    akin = [_signature("D46", "akin", -0.27, r) for r in (0.4, 0.1)]
    assert [s.verdict for s in naming._akin_once(akin)] == ["absent", "akin"]
    assert [s.verdict for s in naming._akin_once([*akin, _signature("D45", "named", 1.0, 0.0)])][:2] == ["absent"] * 2


def test_what_a_pattern_explains_but_for_its_size_is_akin(target: Any) -> None:
    """Another wrong scale than D46's or D71's: no defect of the catalogue, and nearly their pattern."""
    narrow = stacks(lambda t: replace(t, query_pre_attn_scalar=t.query_pre_attn_scalar * 1.05))
    verdicts = {s.defect: s for s in judged(narrow, target, "short").named}
    (akin,) = (d for d, s in verdicts.items() if s.akin)
    assert akin in ("D46", "D71")
    assert not any(s.named for s in verdicts.values())
    assert abs(verdicts[akin].coefficient - 1) > 0.1


def test_a_tap_that_nobody_shows_is_not_named(target: Any) -> None:
    (case,) = cases.select(cases.build(target.config), ["short"])
    missing = Finding("decoder.layers.3.mlp.act_fn", 0, "missing")
    with Dump() as dump:
        dump.new_call()
        assert naming.named(target, case, dump, "float32", missing) == []
        assert naming.named(target, case, dump, "float32", replace(missing, tap="no.such.tap")) == []


def test_every_kind_has_its_candidates() -> None:
    chosen = {f.id for f in naming.candidates("decoder.layers.17.mlp.act_fn")}
    assert chosen == {"D52", "D83"}
    assert {"D09", "D11", "D12"} <= {f.id for f in naming.candidates("encoder.text_model.layers.4.self_attn.k_norm")}
    assert {f.id for fault in FAULTS for f in naming.candidates(fault.tap)} <= set(DEFECTS)


def test_what_is_wrong_where_nobody_looks_is_a_candidate_behind() -> None:
    attention, mask = "decoder.layers.0.self_attn.attention", "decoder.layers.0.self_attn.mask"
    alone = {f.id for f in naming.candidates(attention)}
    assert not {"D34", "D42"} & alone
    assert alone | {"D34", "D42"} <= {f.id for f in naming.candidates(attention, [mask])}
    assert {"D19", "D23"} <= {f.id for f in naming.candidates(attention, ["decoder.rotary_emb.full_attention.cos"])}
