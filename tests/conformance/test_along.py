"""Truth and controls of a case, made once for peers that are judged on it one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from command_line import Ours
from dumping import case_of
from dumping import tiny as bundled_tiny

from conformance.judge.along import Along
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.judge.walk import Walk
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref.backend import NUMPY
from t5g2ref.dtypes import DType


def bare(found: Judgement) -> Judgement:
    return replace(found, seconds={})


@pytest.fixture(scope="module")
def tiny() -> Target:
    return bundled_tiny()


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each walk that is made, whether it is a local one."""
    made: list[bool] = []
    run = Walk.run

    def counted(self: Walk, *given: Any) -> Any:
        made.append(self._local)
        return run(self, *given)

    monkeypatch.setattr(Walk, "run", counted)
    return made


def reference(dtype: DType) -> ReferencePeer:
    return ReferencePeer(NUMPY, dtype)


def judged(peer: Ours | ReferencePeer, target: Target, name: str, shared: Along | None = None) -> Judgement:
    peer.open(target)
    return bare(judge(peer, target, case_of(target, name), repeat=False, shared=shared))


def drifting(call: int, tap: str, value: Any) -> Any:
    """Wrong at the end of a layer, so that the cumulative anchor shows it."""
    return value * 1.01 if tap == "encoder.text_model.layers.1" else value


def test_what_is_found_is_the_same(tiny: Target, walks: list[bool]) -> None:
    right, wrong = Ours("right"), Ours("wrong", drifting)
    alone = [judged(peer, tiny, "short") for peer in (right, wrong)]
    assert [j.passed for j in alone] == [True, False]
    assert any(not f.passed for f in alone[1].cumulative)
    walks.clear()
    shared = Along()
    assert [judged(peer, tiny, "short", shared) for peer in (right, wrong)] == alone
    assert walks == [True, False, True]


def test_another_case_or_checkpoint_is_walked(tiny: Target, walks: list[bool]) -> None:
    shared, again = Along(), replace(tiny)
    for target, name in ((tiny, "short"), (tiny, "window"), (tiny, "short"), (again, "short")):
        judged(Ours(), target, name, shared)
    assert walks == [True, False] * 4


def test_another_type_or_other_taps_are_walked(tiny: Target, walks: list[bool]) -> None:
    """A float32 peer must not meet a bfloat16 truth, whose weights are other ones."""
    shared, alone = Along(), [judged(reference(dtype), tiny, "short") for dtype in ("bfloat16", "float32")]
    walks.clear()
    assert [judged(reference(dtype), tiny, "short", shared) for dtype in ("bfloat16", "float32")] == alone
    assert walks == [True, False] * 2
    fewer = reference("float32")
    fewer.taps = ("encoder.*", "logits", "decoder.layers.*.self_attn.mask", "decoder.norm")
    judged(fewer, tiny, "short", shared)
    assert walks == [True, False] * 3


def test_what_was_broken_off_is_not_used(tiny: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, meet, alone = Along(), Walk._meet, judged(Ours(), tiny, "short")

    def interrupted(self: Walk, call: int, name: str, values: Any) -> Any:
        if not self._local and name == "decoder.layers.0":
            raise KeyboardInterrupt
        return meet(self, call, name, values)

    monkeypatch.setattr(Walk, "_meet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judged(Ours(), tiny, "short", shared)
    monkeypatch.setattr(Walk, "_meet", meet)
    assert judged(Ours(), tiny, "short", shared) == alone
