"""Two catalogued defects at one operation: both are named, and nothing is where something else is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from dumping import case_of, tiny

from conformance.defects.all import FAULTS
from conformance.defects.injection import Fault, Injection, joined, operation, tapped
from conformance.defects.rounding import grid
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.selftest.faulty_peer import FaultyPeer
from t5g2ref.dtypes import DType
from t5g2ref.numerics import Array, Numerics

NORM = "encoder.text_model.layers.0.pre_self_attn_layernorm"
MASK = "encoder.text_model.layers.0.self_attn.mask"


def fault_of(key: str) -> Fault:
    return next(f for f in FAULTS if f.key == key)


def judged(inject: Injection, name: str, dtype: DType = "float32") -> Judgement:
    peer = FaultyPeer(inject, dtype=dtype)
    peer.open(tiny())
    return judge(peer, tiny(), case_of(tiny(), name), repeat=False)


def named(found: Judgement) -> list[tuple[str, str]]:
    return sorted((s.defect, s.beside) for s in found.named if s.named)


@pytest.mark.parametrize(
    ("keys", "case"),
    [
        ("D32+D38", "padded-right"),
        ("D34 mask+D42", "padded-left"),
        ("D39+D42", "padded-left"),
    ],
)
def test_two_that_change_one_mask_are_named(keys: str, case: str) -> None:
    one, other = (fault_of(key) for key in keys.split("+"))
    found = judged(joined(one.inject, other.inject), case)
    assert found.culprit is not None
    assert found.culprit.status == "mask"
    assert named(found) == [(one.id, other.id), (other.id, one.id)]


def _narrow_and_early(_: Any, nx: Numerics, x: Array, weight: Array, eps: float) -> Array:
    """D11 and D12: 1 + w is rounded, and so is what it multiplies."""
    wide = nx.wide(x)
    normed = grid(nx, wide / nx.xp.sqrt((wide * wide).mean(axis=-1, keepdims=True) + eps), "bfloat16")
    return nx.cast(normed * grid(nx, 1.0 + nx.wide(nx.weight(weight)), "bfloat16"))


NORMS = operation(rms_norm=_narrow_and_early)


def test_two_in_one_norm_are_named_in_float32() -> None:
    found = judged(NORMS, "short")
    assert found.culprit is not None
    assert (found.culprit.tap, named(found)) == (NORM, [("D11", "D12"), ("D12", "D11")])
    assert "both at once" in found.named[0].size


def test_two_in_one_norm_are_named_in_bfloat16() -> None:
    """There their patterns are looked for side by side in any case."""
    assert {defect for defect, _ in named(judged(NORMS, "short", "bfloat16"))} == {"D11", "D12"}


def test_a_third_that_nobody_knows_leaves_both_unnamed() -> None:
    one, other = fault_of("D32"), fault_of("D38")

    def spoilt(_: Any, mask: Array) -> Array:
        mask = mask.copy()
        mask[0, 2, 1] = ~mask[0, 2, 1]
        return mask

    assert named(judged(joined(one.inject, other.inject, tapped(MASK, spoilt)), "padded-right")) == []


def test_one_alone_is_never_called_two() -> None:
    assert named(judged(fault_of("D38").inject, "padded-right")) == [("D38", "")]
