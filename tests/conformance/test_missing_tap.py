"""A peer that lacks a tap which it does not say that it lacks: the tap is missing, and the next one is not accused."""

from __future__ import annotations

from typing import Any

import pytest
from dumping import case_of, tiny

from conformance.activations import Dump
from conformance.defects.injection import HEALTHY, Injection
from conformance.judge.judge import judge
from conformance.selftest.faulty_peer import FaultyPeer
from t5g2ref.dtypes import DType

GATE, SOFT, LATER = (f"decoder.layers.2.{part}" for part in ("mlp.act_fn", "self_attn.q_norm", "mlp.down_proj"))


class Lacking(FaultyPeer):
    """It computes the tap, and does not show it."""

    def __init__(self, tap: str, dtype: DType, injection: Injection = HEALTHY) -> None:
        super().__init__(injection, dtype=dtype)
        self._lacks = tap

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        return value if name == self._lacks else super()._shown(dump, name, value)


def scaled(tap: str) -> Injection:
    return Injection(taps=lambda _: lambda call, name, value: value * value.dtype.type(1.25) if name == tap else value)


def failing(tap: str, dtype: DType, injection: Injection = HEALTHY) -> list[tuple[str, str]]:
    target, peer = tiny(), Lacking(tap, dtype, injection)
    peer.open(target)
    return [
        (f.tap, f.status) for f in judge(peer, target, case_of(target, "short"), repeat=False).local if not f.passed
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tap", [GATE, SOFT])
def test_only_the_tap_itself_is_missing(tap: str, dtype: DType) -> None:
    """Two operations lie between the taps around it: the bound of one is none of theirs."""
    assert failing(tap, dtype) == [(tap, "missing")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_fault_in_it_shows_behind_it(dtype: DType) -> None:
    """The missing tap is first, and what it hides is told by the ratio of the next."""
    (first, *more) = failing(GATE, dtype, scaled(GATE))
    assert first == (GATE, "missing")
    assert more
    assert all(status == "values" for _, status in more)
    assert (LATER, "missing") not in failing(GATE, dtype, scaled(LATER))
    later = dict(failing(GATE, dtype, scaled(LATER)))
    assert later[LATER] in ("values", "ceiling"), "a fault that comes later is still seen, and has its own bound"
