"""Oracles with defects leave out what they are not looked at in: what is found does not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dumping import tiny
from judging import judged

from conformance.judge import patterns
from conformance.peers.reference import ReferencePeer
from t5g2ref import attention, ops, rope
from t5g2ref.backend import NUMPY
from t5g2ref.numerics import Numerics


class Whole(Numerics):
    """A lookout that leaves out nothing but its class."""


@pytest.mark.parametrize("case", ["image", "padded-left-cached"])
def test_what_they_leave_out_is_not_looked_at(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny()
    found = judged(ReferencePeer(NUMPY, "bfloat16"), target, case)
    monkeypatch.setattr(patterns, "ELSEWHERE", {})
    monkeypatch.setattr(patterns, "Lookout", Whole)
    whole = judged(ReferencePeer(NUMPY, "bfloat16"), target, case)
    assert found.named
    assert found.named == whole.named
    assert found.local == whole.local


def refused(*_: Any) -> Any:
    raise AssertionError("it was computed")


def test_an_oracle_of_norms_makes_nothing_else() -> None:
    """What it gives in place of what costs has the shape of that, and is never computed; its own operation is."""
    norms = patterns.oracles(NUMPY, "bfloat16")[1]
    twins, rng = norms.backend.twins, np.random.default_rng(11)
    x, keys = (norms.xp.asarray(rng.standard_normal(shape)) for shape in ((1, 4, 6, 8), (1, 2, 5, 8)))
    for operation in (ops.gelu_tanh, rope.rotate):
        assert twins[operation.__name__](refused, norms, x, None, None) is x
    grouped = (1, 2, 2, 6, 5)
    weights = twins[attention.attention_weights.__name__](refused, norms, x, keys, 1.0, None, None, grouped)
    assert (weights.shape, weights.any()) == (grouped, False)
    product = norms.linear(x, norms.xp.ones((3, 8)))
    assert (product.shape, product.any()) == ((1, 4, 6, 3), False)
    own = twins[ops.rms_norm.__name__](ops.rms_norm, norms, x, norms.xp.zeros(8), 1e-6)
    assert own.shape == x.shape
    assert np.abs(np.mean(own**2, axis=-1) - 1).max() < 0.01, "of root mean square 1, up to a rounding"


@pytest.mark.parametrize("number", range(len(patterns.MEMBERS)))
def test_each_oracle_is_looked_at_in_its_own_operation(number: int) -> None:
    """Broken by a stand-in where a defect shows: its pattern is then that of the stand-in."""
    every = {"attention_weights", "gelu_tanh", "rms_norm"}
    own = (every, {"rms_norm"}, {"rms_norm"}, every)[number]
    twins = patterns.oracles(NUMPY, "bfloat16")[number].backend.twins
    stood_in = {name for name, twin in twins.items() if twin is not None and twin is patterns.ELSEWHERE.get(name)}
    assert stood_in == {name for name, twin in patterns.ELSEWHERE.items() if twin is not None} - own
