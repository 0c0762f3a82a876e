"""The judge on another array library: the same verdicts, few launches and waits, weights that are made there.

A stand-in device (`standin.py`) refuses to mix with host arrays and counts the waits; the real one is for test_gpu.
"""

from __future__ import annotations

import math
from collections import Counter
from threading import Event
from typing import Any

import numpy as np
import pytest
from helpers import same_bits
from judging import Faulty, judged
from one_tap import MASK, SHAPES, VALUES
from standin import Device

from conformance import checkpoints
from conformance.arrays import to_backend, to_host
from conformance.checkpoints import resolve
from conformance.measure.distance import Distances, Fused, distances
from conformance.measure.finding import Finding
from conformance.measure.ratio import examine
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref import bundled, params
from t5g2ref.backend import NUMPY, BackendError
from t5g2ref.config import Config
from t5g2ref.dtypes import HALF, DType, to_grid

pytestmark = pytest.mark.slow  # minutes in all

TYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny-even", synthetic=False)[0]


@pytest.fixture
def far(devices: None) -> Target:
    """The same checkpoint on the stand-in device."""
    return resolve("tiny-even", synthetic=False, backend=Device())[0]


# The stand-in device


@pytest.mark.parametrize("name", ["short", "images", "loss"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_the_judge_runs_on_a_device(where: str, dtype: DType, name: str, far: Target, target: Target) -> None:
    """The same findings as on NumPy but for the order of the sums, with the peer's arrays here or there."""
    found = judged(ReferencePeer(NUMPY if where == "host" else far.backend, dtype), far, name)
    expected = judged(ReferencePeer(NUMPY, dtype), target, name)
    assert found.passed, found.culprit
    for a, b in zip(found.local + found.cumulative, expected.local + expected.cumulative, strict=True):
        assert (a.tap, a.call, a.status, a.tokens) == (b.tap, b.call, b.status, b.tokens)
        assert math.isclose(a.worst, b.worst, rel_tol=1e-9)


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_fault_on_a_device_is_found_at_its_tap(where: str, far: Target) -> None:
    tap = "decoder.layers.2.mlp.act_fn"
    peer = Faulty(NUMPY if where == "host" else far.backend, "float32", tap, 1.01)
    result = judged(peer, far, "short")
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (tap, "values")


def test_few_waits_and_launches_a_tap(far: Target) -> None:
    result = judged(ReferencePeer(far.backend, "float32"), far, "decoder-split", repeat=True)
    findings = result.local + result.cumulative
    library = far.backend.xp
    masks = sum(f.tap.endswith(".mask") for f in findings)
    waits = Counter(place for place in library.waits if not place.startswith(("inputs.", "model.", "embedding.")))
    logits = sum(f.tap == "logits" for f in result.local)  # and once more for KL and first choice
    assert waits.pop("logits.LogitTest.add") == logits
    bounded = sum(not f.tap.endswith(".mask") for f in result.local)  # local taps wait for their bounds as well
    assert waits.pop("bound.above") == bounded
    assert waits.pop("arrays.same_bits") == len(result.local), "the second run is compared once a tap"
    assert waits == {"distance.Distances.differing": masks, "distance.Fused.errors": len(findings) - masks}
    assert len(library.launched) == 4 * (len(findings) - masks)  # truth, peer and two controls


@pytest.mark.parametrize("letters", SHAPES)
def test_fused_distances(letters: str, devices: None) -> None:
    axes, shape, _ = SHAPES[letters]
    rng, device = np.random.default_rng(7), Device()
    truth = rng.normal(size=shape)
    peer, *controls = (np.asarray(truth + 1e-6 * rng.normal(size=shape), np.float32) for _ in range(3))
    expected = Distances().errors(axes, truth, peer, controls)
    fused = distances(device)
    assert isinstance(fused, Fused)
    found = fused.errors(axes, *map(device.xp.asarray, (truth, peer)), list(map(device.xp.asarray, controls)))
    assert found.shape == (3, math.prod(shape[a] for a in axes))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


GATES: list[tuple[str, Any]] = [
    ("missing", lambda p: None),
    ("shape", lambda p: p[:, :4]),
    ("dtype", lambda p: p.astype(bool)),
    ("nan", lambda p: np.where(np.arange(p.size).reshape(p.shape) == 77, np.nan, p).astype(p.dtype)),
    ("nan", lambda p: np.where(np.arange(p.size).reshape(p.shape) == 159, -np.inf, p).astype(p.dtype)),
    ("values", lambda p: (p * 1.5).astype(p.dtype)),
    ("pass", lambda p: p),
]


def test_a_signalling_nan_fails_without_a_warning() -> None:
    peer = np.ones((1, 2, 16), np.uint16).view(HALF["bfloat16"])
    peer.view(np.uint16)[0, 1, 3] = 0x7F81
    found = examine(VALUES, 0, peer, np.ones(peer.shape), [np.ones(peer.shape)], None, dtype="bfloat16", limit=8.0)
    assert (found.status, found.detail) == ("nan", "expected finite numbers, found nan at (0, 1, 3)")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("status", "change"), GATES)
def test_gates_on_a_device(status: str, change: Any, dtype: str, devices: None) -> None:
    """The same finding as NumPy's, word for word; token 9 is padding, and a NaN there fails too."""
    device, kind = Device(), HALF.get(dtype, np.float32)
    truth = np.random.default_rng(3).normal(size=(2, 5, 16))
    peer, valid = change(truth.astype(kind)), np.arange(10).reshape(2, 5) < 9
    control = to_grid(truth.astype(np.float32) * np.float32(1 + 2**-9), dtype)

    def found(put: Any, measure: Distances) -> Finding:
        peer_ = None if peer is None else put(peer)
        given: dict[str, Any] = {"dtype": dtype, "limit": 8.0, "distances": measure}
        return examine(VALUES, 0, peer_, put(truth), [put(control)], valid, **given)

    expected, seen = found(lambda x: x, Distances()), found(lambda x: to_backend(x, device), distances(device))
    assert expected.status == seen.status == status
    assert (seen.detail, seen.token, seen.tokens) == (expected.detail, expected.token, expected.tokens)


def test_masks_on_a_device(devices: None) -> None:
    device = Device()
    truth, valid = np.tri(4, 6, dtype=bool)[None].repeat(2, axis=0), np.array([[True] * 4, [True] * 2 + [False] * 2])
    peer = truth.copy()
    peer[0, 2, 5] = peer[1, 3, 0] = ~peer[0, 2, 5]
    args = [[device.xp.asarray(x) for x in (peer, truth)], [peer, truth]]
    measures = (distances(device), Distances())
    there, here = (
        examine(MASK, 0, p, t, [t], valid, dtype="float32", limit=8.0, distances=m)
        for (p, t), m in zip(args, measures, strict=True)
    )
    assert there.status == "mask"
    assert repr(there) == repr(here)
    assert "1 keys differ from the rule (1 too many, 0 too few); 1 of 6 queries are wrong" in there.detail


# Where arrays lie


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "bool", "int64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_there_and_back(shape: tuple[int, ...], dtype: Any, devices: None) -> None:
    device = Device()
    value = np.asarray(np.random.default_rng(1).normal(size=shape) * 9).astype(HALF.get(dtype, dtype))
    there = to_backend(value, device)
    assert (there.shape, there.dtype) == (value.shape, value.dtype)
    same_bits(to_host(there), value)
    assert to_backend(there, device) is there
    assert to_backend(value, NUMPY) is value
    same_bits(to_backend(there, NUMPY), value)


# Synthetic tensors, made ahead


class Tensors(dict[str, Any]):
    """A mapping that notes how many of its values were made and not yet taken."""

    def __init__(self, count: int, bad: int | None = None) -> None:
        super().__init__((f"t{i}", i) for i in range(count))
        self.bad, self.made = bad, 0

    def __getitem__(self, name: str) -> Any:
        self.made += 1
        if super().__getitem__(name) == self.bad:
            raise ZeroDivisionError(name)
        return super().__getitem__(name)


def test_every_tensor_comes_once_and_they_are_not_all_made_at_once() -> None:
    tensors, seen = Tensors(50), []
    steps: list[tuple[str, int, int]] = []
    made = checkpoints._made(tensors.__getitem__, {name: name for name in tensors}, lambda *step: steps.append(step))
    for taken, (name, value) in enumerate(made):
        assert tensors.made <= taken + 1 + checkpoints.WORKERS
        seen.append((name, value))
    assert sorted(seen, key=lambda one: one[1]) == [(f"t{i}", i) for i in range(50)]
    assert steps == [(name, done, 50) for done, (name, _) in enumerate(seen)]


def test_no_tensor_waits_for_one_that_takes_long() -> None:
    """Broken by tensors that come in the order of their names: then nothing is made beside the largest."""
    others = Event()

    def make(name: str) -> str:
        assert name != "large" or others.wait(10), "it is the first, and the only one"
        return name

    names = ["large", *(f"t{i}" for i in range(50))]
    for made, (name, value) in enumerate(checkpoints._made(make, {name: name for name in names}, lambda *_: None)):
        assert name == value
        if made == 49:
            others.set()


def test_an_error_in_making_one_is_raised() -> None:
    with pytest.raises(ZeroDivisionError, match="t7"):
        list(checkpoints._made(Tensors(50, bad=7).__getitem__, {f"t{i}": f"t{i}" for i in range(50)}, lambda *_: None))


def test_room_is_asked_for_before_anything_is_read(devices: None) -> None:
    class Full(Device):
        def require(self, bytes_needed: int, what: str) -> None:
            raise BackendError(f"{bytes_needed} bytes for {what}")

    for name, synthetic in (("tiny-even", False), (str(bundled("tiny-even")), True)):
        with pytest.raises(BackendError) as caught:
            resolve(name, synthetic=synthetic, backend=Full())
        size = 4 * params.count(Config.load(bundled("tiny-even")))
        assert str(caught.value) == f"{size} bytes for the weights of {name} in float32"


def test_synthetic_weights_on_a_device_are_the_same(devices: None) -> None:
    folder, device = str(bundled("tiny-even")), Device()
    (here,), (there,) = (resolve(folder, synthetic=True, backend=backend) for backend in (NUMPY, device))
    assert there.backend is device
    assert list(there.weights) == list(here.weights)
    for name, value in here.weights.items():
        same_bits(to_host(there.weights[name]), value)
