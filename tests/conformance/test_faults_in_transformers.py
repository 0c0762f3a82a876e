"""A judge that cannot fail is no judge: faults put into a copy of transformers must be found at the right tap.

Each fault is injected from outside into the peer's own model, the way a port gets it wrong, and the case named with it
is judged. The first failing local tap has to be the one where that fault happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: the faults are injected into transformers")
pytest.importorskip("transformers", reason="needs transformers: the faults are injected into it")

from injected import assert_injected
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers_faults import DEC, ENC, FAULTS, Fault, Faulty
from transformers_patches import decoder, short_sliding_cache, truncated_cross_cache

from conformance.activations import Dump
from conformance.cases import catalogue as cases
from conformance.checkpoints import resolve
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.measure.limits import DEFECT, LIMITS
from conformance.peers.torch.transformers import TransformersPeer

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def target() -> Any:
    return resolve("tiny", synthetic=False)[0]


def judged(peer: TransformersPeer, target: Any, name: str) -> Judgement:
    (case,) = cases.select(cases.build(target.config), [name])
    if isinstance(peer, Faulty):
        with pytest.MonkeyPatch.context() as patch:  # gone before the healthy one runs, and before the judgement
            assert_injected(Faulty(peer.inject, patch), TransformersPeer("sdpa"), target, case)
    peer.open(target)
    return judge(peer, target, case, repeat=False)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_fault_is_found_at_its_tap(fault: Fault, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judged(Faulty(fault.inject, monkeypatch), target, fault.case)
    assert not result.error
    assert result.culprit is not None, "the fault went unseen"
    found = (result.culprit.tap, result.culprit.status, result.culprit.call)
    assert found == (fault.tap, fault.status, fault.call), result.culprit
    assert result.deviates
    if fault.status == "values":
        # far above what passes, so that the limit needs no tuning; a single weight's last bit is the smallest thing
        assert result.culprit.worst > (2 * LIMITS["local"] if "last bit" in fault.name else DEFECT)


@pytest.mark.parametrize("name", [f"{ENC}.layers.1.mlp.act_fn", f"{DEC}.norm", "logits"])
def test_missing_tap_is_a_failure(name: str, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Dump.put
    monkeypatch.setattr(
        Dump, "put", lambda self, tap, value, **how: None if tap == name else true(self, tap, value, **how)
    )
    result = judged(TransformersPeer("sdpa"), target, "short")
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (name, "missing")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda x: x[..., :-1], "shape"),
        (lambda x: x.astype(np.float16), "dtype"),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.inf, x).astype(x.dtype), "nan"),
        (lambda x: x + np.float32(1e-3), "values"),
    ],
)
def test_every_gate_can_fail(
    change: Callable[[Any], Any], status: str, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, name = Dump.put, f"{DEC}.layers.2"

    def put(self: Any, tap: str, value: Any, **how: Any) -> None:
        true(self, tap, change(value) if tap == name else value, **how)

    monkeypatch.setattr(Dump, "put", put)
    result = judged(TransformersPeer("eager"), target, "short")
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (name, status)


def verdict(result: Judgement) -> str:
    report = pytest.importorskip("conformance.report.text", reason="needs rich: the verdict is the report's")
    return str(report.Result([("tiny", result)], {}, {}, {}, selected=1, available=1).verdict)


def test_short_sliding_cache_is_found_before_it_raises(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers counts on its own window when it makes the mask, and fails at the first layer; the keys that
    reached its attention are evidence all the same."""
    result = judged(Faulty(short_sliding_cache, monkeypatch), target, "decoder-steps")
    assert result.error.startswith("RuntimeError: ")
    assert result.local
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (f"{DEC}.layers.0.self_attn.keys", "shape")
    assert result.culprit.call > 0
    assert (result.passed, result.deviates, verdict(result)) == (False, True, "DEVIATES")


def test_truncated_cross_cache_is_not_passed(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judged(Faulty(truncated_cross_cache, monkeypatch), target, "cross-cached")
    assert result.error.startswith("RuntimeError: The size of tensor a (20) must match the size of tensor b (32)")
    assert result.culprit is not None
    # the mask is made for 3 own keys and 29 of the source; there are 3 and 17, fewer than the source alone, so that
    # the halves cannot be told apart and every tap on them shows what reached the attention
    assert (result.culprit.tap, result.culprit.status) == (f"{DEC}.layers.0.self_attn.keys", "shape")
    assert result.culprit.call == 1
    assert (result.passed, result.deviates, verdict(result)) == (False, True, "DEVIATES")


def coarse_cache(_: Any, patch: pytest.MonkeyPatch) -> None:
    """Keys come out of the cache as multiples of 1 / 32, the newest too, as from one that keeps small integers."""
    for kind in (DynamicLayer, DynamicSlidingWindowLayer):

        def update(self: Any, *args: Any, true: Any = kind.update, **kwargs: Any) -> Any:
            keys, values = true(self, *args, **kwargs)
            return (keys * 32).round() / 32, values

        patch.setattr(kind, "update", update)


def test_a_lossy_cache_is_no_fault_of_rope(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turned keys are seen before the cache, and are right; the report says where it begins, and how wide it is."""
    result = judged(Faulty(coarse_cache, monkeypatch), target, "cross-cached")
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (f"{DEC}.layers.0.self_attn.keys", "values")
    assert all(f.passed for f in result.local if f.tap.endswith("k_rope"))
    spread = pytest.importorskip("conformance.report.spread")
    rows = [(f.tap, f.call, f.status) for f in result.local]
    assert spread.cache(result.culprit.tap, result.culprit.call, rows).startswith("the cache")
    assert "in 7 of 7 layers, at the same tap" in spread.layers(result.culprit.tap, rows)


def test_keys_are_seen_without_a_rope_of_that_name(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model file whose RoPE has another name shows its newest keys as they reach the attention."""
    monkeypatch.setattr("conformance.peers.torch.hooks.ROTATE", "no_such_function")
    assert judged(TransformersPeer("sdpa"), target, "cross-cached").culprit is None


def test_what_is_missing_after_an_error_is_no_fault(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All taps before are right, so nothing is known against the peer."""

    def stops(model: Any, patch: pytest.MonkeyPatch) -> None:
        def refuse(module: Any, args: Any) -> None:
            raise RuntimeError("not implemented")

        decoder(model).layers[2].mlp.register_forward_pre_hook(refuse)

    result = judged(Faulty(stops, monkeypatch), target, "short")
    assert result.error == "RuntimeError: not implemented"
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (f"{DEC}.layers.2.mlp.gate_proj", "missing")
    before = result.local[: result.local.index(result.culprit)]
    assert before
    assert all(f.passed for f in before)
    assert (result.passed, result.deviates, verdict(result)) == (False, False, "INCOMPLETE")
