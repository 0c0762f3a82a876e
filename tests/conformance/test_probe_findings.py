"""What a peer shows at a probe: nothing missing, not finite, of another shape or unsteady is a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exact_findings import DEC, ENC, failed
from probing import examined, with_decoder

from conformance.activations import Dump
from conformance.checkpoints import resolve
from conformance.judge.exact.moves import examine_probe
from conformance.judge.exact.probes import Change, Probe, probes, stages
from conformance.measure.finding import FAILURES
from conformance.peers.find import create
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref.backend import NUMPY

pytestmark = pytest.mark.slow  # minutes in all


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny-even", synthetic=False)[0]


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
    assert status in FAILURES
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
