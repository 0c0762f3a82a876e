"""What a picture takes in memory: what is let go once it is not needed, and what is predicted. Each holds some array of
a picture's size, or a gigabyte of sums, where it fails."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from dumping import case_of
from dumping import tiny as bundled_tiny
from helpers import close, normal, same_bits

from conformance.cases.case import Case
from conformance.cases.plan import plan_of, shape_of, sizes
from conformance.defects.rounding import twins
from conformance.judge import judge as judge_module
from conformance.judge.half_lane import HalfLane
from conformance.measure.regression import MOST, clustered
from conformance.oracle.run_case import legal
from conformance.oracle.worst_case import ceiling
from conformance.peers.reference import ReferencePeer
from conformance.sweep import room
from conformance.target import Target
from t5g2ref.backend import NUMPY
from t5g2ref.checkpoint import synthetic
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import preset
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import EXACT, SDPA, Numerics
from t5g2ref.ops import gelu_tanh
from t5g2ref.params import shapes, tree
from t5g2ref.trace import Trace

LARGE = (1, 512, 1024)  # 4 MiB in float64: eight pieces of an operation that goes in pieces


@pytest.fixture(scope="module")
def tiny() -> Target:
    return bundled_tiny()


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Gives the most bytes that were held at a time since the block began."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Operations


@pytest.mark.parametrize("defect", ["D52", "D83"])
def test_a_defect_of_an_activation_goes_in_pieces(defect: str) -> None:
    """Its result and a few pieces of an eighth. Whole, erf alone held eight such arrays."""
    nx = Numerics("float64", EXACT, NUMPY.with_twins(twins(defect, "bfloat16")))
    x = normal(defect, *LARGE)
    with traced() as peak:
        found = gelu_tanh(nx, x)
        assert x.nbytes <= peak() < 2.5 * x.nbytes
    same_bits(found, np.concatenate([gelu_tanh(nx, part) for part in np.split(x, 64, axis=1)], axis=1))


def test_the_bound_of_an_activation_goes_in_pieces() -> None:
    nx, x = ceiling(NUMPY, "bfloat16"), normal("bound", *LARGE)
    with traced() as peak:
        found = gelu_tanh(nx, x)
        assert x.nbytes <= peak() < 2 * x.nbytes
    same_bits(found, np.concatenate([gelu_tanh(nx, part) for part in np.split(x, 64, axis=1)], axis=1))


def test_the_bound_of_a_layer_holds_few_arrays() -> None:
    """The product, its size, the first rounding and the sum: a bias needs no copies."""
    nx = ceiling(NUMPY, "bfloat16")
    rows, weight, bias = normal("rows", 512, 16), normal("weight", 1024, 16), normal("bias", 1024)
    with traced() as peak:
        found = nx.linear(rows, weight, bias)
        assert found.nbytes <= peak() < 4.5 * found.nbytes
    u, single = nx.u, 2.0**-24
    y, size = rows @ weight.T, np.abs(rows) @ np.abs(weight).T
    expected = u * (1 + u) * np.abs(y) + u * np.abs(y + bias) + (16 + 4) * single * (size + np.abs(bias))
    # It is formed in float32: never less than it should be, and more by what that may lose.
    assert (found >= expected).all()
    close(found, expected, rtol=4 * u)


def test_a_weight_is_drawn_in_parts_and_is_the_same(tiny: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken by a part that begins a stream of its own, and by rows of the massive activation in the wrong part."""
    made = Synthetic(tiny.config)
    monkeypatch.setattr(synthetic, "AT_ONCE", 1 << 40)
    whole = {name: made.narrow(name) for name in made}
    monkeypatch.setattr(synthetic, "AT_ONCE", 1 << 10)
    for name, value in whole.items():
        assert made.narrow(name).tobytes() == value.tobytes(), name
    largest = max(whole, key=lambda name: whole[name].nbytes)
    with traced() as peak:
        assert made.narrow(largest).nbytes <= peak() < 1.5 * whole[largest].nbytes, "one in float32 is twice as large"


def test_sums_are_taken_together_row_by_row() -> None:
    rng = np.random.default_rng(7)
    grams = [rng.normal(size=(8, 8, 4, 1500)) for _ in range(5)]
    with traced() as peak:
        found = clustered(grams)
        assert peak() < sum(gram.nbytes for gram in grams) / 4
    whole = np.concatenate([gram.reshape(8, 8, -1) for gram in grams], axis=2)
    same_bits(found, np.add.reduceat(whole, np.linspace(0, 30_000, MOST + 1).astype(int)[:-1], axis=2))


# Runs


def test_a_tower_lets_go_of_what_it_has_read(tiny: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a feed-forward is at its widest, nothing of the attention before it is left, nor the positions."""
    ended = ("layer_norm1", "q_proj", "k_proj", "v_proj", "patch_embedding", "post_layernorm")
    seen: dict[str, weakref.ref[Any]] = {}
    widened: list[weakref.ref[Any]] = []
    held: list[str] = []
    weight = Numerics.weight

    def watched(self: Numerics, value: Any) -> Any:
        found = weight(self, value)
        if value is tiny.weights["encoder.vision_tower.embeddings.position_embedding.weight"]:
            widened.append(weakref.ref(found))
        return found

    def sink(name: str, value: Any) -> Any:
        if name.endswith("mlp.fc1"):
            held.extend(name for name, one in seen.items() if one() is not None)
            held.extend("positions" for one in widened if one() is not None)
        own = value.copy()
        if name.endswith(ended):
            seen[name] = weakref.ref(own)
        elif name.endswith("self_attn.attention"):
            seen[name] = weakref.ref(value)
        return own

    monkeypatch.setattr(Numerics, "weight", watched)
    model = T5Gemma2(tiny.config, tree(tiny.weights), Numerics("bfloat16", SDPA))
    (run,) = case_of(tiny, "image").runs
    model.encode(run.input_ids, pixel_values=run.pixel_values, trace=Trace(sink))
    assert len(seen) > 10
    assert widened
    assert not held


def test_sums_end_with_their_anchor(tiny: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes: list[weakref.ref[HalfLane]] = []
    alive: list[bool] = []

    class Kept(HalfLane):
        def __init__(self, *given: Any, **how: Any) -> None:
            super().__init__(*given, **how)
            lanes.append(weakref.ref(self))

    def progress(text: str) -> None:
        if "cumulative anchor" in text:
            alive.extend(lane() is not None for lane in lanes)

    monkeypatch.setattr(judge_module, "HalfLane", Kept)
    peer = ReferencePeer(NUMPY, "bfloat16")
    peer.open(tiny)
    assert judge_module.judge(peer, tiny, case_of(tiny, "short"), progress).passed
    assert alive == [False]


# What is predicted


def test_the_sums_of_a_case_are_predicted(tiny: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds and patterns are of single operations, and the prediction takes every tap for one: so it is no less."""
    lanes: list[HalfLane] = []

    class Kept(HalfLane):
        def __init__(self, *given: Any, **how: Any) -> None:
            super().__init__(*given, **how)
            lanes.append(self)

    monkeypatch.setattr(judge_module, "HalfLane", Kept)
    case, peer = case_of(tiny, "image"), ReferencePeer(NUMPY, "bfloat16")
    peer.open(tiny)
    judge_module.judge(peer, tiny, case, repeat=False)
    moments = [m.moments for lane in lanes for m in lane._measured]
    kept = sum(getattr(m, f.name).nbytes for m in moments for f in fields(m) if hasattr(getattr(m, f.name), "nbytes"))
    plan = [(tap, shape_of(tap, sizes(tiny.config, case, call, tap))) for call, tap in plan_of(tiny.config, case)]
    predicted = sum(room._sums(tiny.config, tap, shape, len(legal("bfloat16"))) for tap, shape in plan)
    assert kept <= predicted < 1.2 * kept


def test_what_a_picture_takes_is_predicted() -> None:
    """Of a released tower: 4096 patches, 4304 numbers in the middle of a feed-forward, 27 layers of 16 heads."""
    config = preset("270m")
    target = Target("270m", config, {room.TABLE: np.zeros((1, 1), ml_dtypes.bfloat16)})
    case = case_of(target, "image")
    widest = 4096 * 4304 * (6 * 8 + 5 * 4)  # truth, bounds and four oracles in float64, five controls in float32
    heads = 27 * 4096 * 16 * 8**2 * 8  # sums of products of eight rows: the peer, five controls, two defects
    found = room.bytes_beside(config, case, "bfloat16")
    assert widest + heads + 2**30 < found < 1.5 * (widest + heads + 2**30)
    words = room.bytes_for(target, case_of(target, "short"), "bfloat16")
    assert room.bytes_for(target, case, "bfloat16") > words + found - 2**28
    outside = sum(int(np.prod(shape)) for name, shape in shapes(config).items() if ".layers." not in name)
    assert room.bytes_for(target, None, "float32") == room.bytes_for(target, None, "bfloat16") + 4 * outside


def test_of_what_follows_from_answers_nothing_is_predicted() -> None:
    """A case for a peer's own `generate` has no runs yet."""
    assert room.bytes_beside(preset("270m"), Case("generate", "", ()), "float32") == 0
