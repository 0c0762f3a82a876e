"""Oracles with defects leave out what they are not looked at in: what is found does not change."""

from __future__ import annotations

from typing import Any

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


def test_they_leave_out_what_costs() -> None:
    """An oracle of norms makes no attention."""

    def refused(*_: Any) -> Any:
        raise AssertionError("it was computed")

    norms = patterns.oracles(NUMPY, "bfloat16")[1]
    for operation in (ops.gelu_tanh, rope.rotate, attention.attention_weights):
        twin = norms.backend.twins[operation.__name__]
        assert twin is not None
        q = k = norms.xp.ones((1, 2, 6, 4))
        given = (
            (q, k, 1.0, None, None, (1, 2, 2, -1, 6)) if operation is attention.attention_weights else (q, None, None)
        )
        assert twin(refused, norms, *given).size in (q.size, 1 * 2 * 6 * 6)
