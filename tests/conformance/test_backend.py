"""The judge on another array library: the same verdicts, few launches and waits, and peers named with type and device.

A stand-in device (`standin.py`) refuses to mix with host arrays and counts the waits; the real one is for test_gpu.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, ran
from helpers import same_bits
from judging import judged
from one_tap import MASK, SHAPES, VALUES
from processes import python
from standin import Device

from conformance import checkpoints
from conformance.activations import Dump
from conformance.arrays import to_backend, to_host
from conformance.cases import catalogue as cases
from conformance.checkpoints import resolve
from conformance.errors import PeerUnavailable
from conformance.measure.distance import Distances, Fused, distances
from conformance.measure.finding import Finding
from conformance.measure.ratio import examine
from conformance.oracle.run_case import models
from conformance.peers.find import FORMS, create, names
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref import bundled, params
from t5g2ref.backend import NUMPY, Backend, BackendError, find
from t5g2ref.config import Config
from t5g2ref.dtypes import HALF, DType, to_grid

TYPES = ("float32", "bfloat16", "float16")
SOME = ("short", "padded-left-cached", "images", "far-positions", "loss", "sequence-single")


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny-even", synthetic=False)[0]


@pytest.fixture
def far(devices: None) -> Target:
    """The same checkpoint on the stand-in device."""
    return resolve("tiny-even", synthetic=False, backend=Device())[0]


class Faulty(ReferencePeer):
    """The reference with one value changed, and gone on with."""

    def __init__(self, backend: Backend, dtype: DType, tap: str, factor: float) -> None:
        super().__init__(backend, dtype)
        self._tap, self._factor = tap, factor

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        if name == self._tap:
            value = self._nx.cast(self._nx.wide(value) * self._factor)  # what is shown is what is gone on with
        return super()._shown(dump, name, value)


# The reference as a peer


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_reference_conforms(dtype: str, name: str, target: Target) -> None:
    """It is one of the controls but for the BLAS's threads; a half type's arrays are shown in that type."""
    result = judged(create(f"t5g2ref:numpy:{dtype}"), target, name)
    assert result.peer == f"t5g2ref:numpy:{dtype}"
    assert result.passed, result.culprit
    assert max(finding.median for finding in result.local + result.cumulative) < 2.0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tap", ["encoder.text_model.layers.1.mlp.act_fn", "decoder.layers.2", "logits"])
def test_a_fault_in_it_is_found_at_its_tap(tap: str, dtype: DType, target: Target) -> None:
    result = judged(Faulty(NUMPY, dtype, tap, 1.5), target, "short")
    assert result.deviates
    assert result.culprit is not None
    assert result.culprit.tap == tap
    assert result.culprit.status in ("values", "ceiling")
    assert [f.tap for f in result.local if not f.passed] == [tap], "one fault lights one row"


def test_half_arrays_keep_their_values(target: Target) -> None:
    """Emulated on float32 arrays, they are shown as the type's own, which is exact; masks and losses are not."""
    (case,) = cases.select(cases.build(target.config), ["loss"])
    shown: dict[str, list[Any]] = {}
    for dtype in ("float32", "bfloat16"):
        peer = create(f"t5g2ref:numpy:{dtype}")
        peer.open(target)
        with Dump() as dump:
            peer.run(case, dump)
            shown[dtype] = [(name, dump.get(0, name)) for name in dump.names(0)]
    kinds = {name: str(value.dtype) for name, value in shown["bfloat16"]}
    assert kinds.pop("loss") == "float32"
    assert {kind for name, kind in kinds.items() if name.endswith(".mask")} == {"bool"}
    assert {kind for name, kind in kinds.items() if not name.endswith(".mask")} == {"bfloat16"}
    assert {str(value.dtype) for _, value in shown["float32"]} == {"float32", "bool"}


# The weights and inputs that everyone runs with


def test_rounded_weights(target: Target) -> None:
    assert target.rounded("float32") is target.weights
    half = target.rounded("bfloat16")
    assert list(half) == list(target.weights)
    assert all(half[name] is value for name, value in target.weights.items()), "the checkpoint is on this grid"
    assert target.rounded("bfloat16") is half, "made once"


def test_weights_off_the_grid_are_rounded_for_truth_and_controls(target: Target) -> None:
    off = np.array([1 + 2**-10, -3.0, 0.5], np.float32)
    name = next(name for name, value in target.weights.items() if value.shape != off.shape)
    other = Target("x", target.config, {**target.weights, name: np.full_like(target.weights[name], off[0])})
    (case,) = cases.select(cases.build(target.config), ["token"])
    for dtype in ("bfloat16", "float16"):
        weights = other.rounded(dtype)
        same_bits(weights[name], to_grid(other.weights[name], dtype))
        assert (weights[name] is other.weights[name]) == (dtype == "float16")  # 1 + 2⁻¹⁰ is a float16
        head = models(other.config, weights, case, dtype)[0].weights.score.out_proj.weight
        same_bits(head, to_grid(case.head(target.config.decoder.hidden_size)["score.out_proj.weight"], dtype))


def test_pictures_are_given_in_the_type(target: Target) -> None:
    every = {case.name: case for case in cases.build(target.config)}
    for case in every.values():
        assert case.given("float32") is case
        pictures = any(run.pixel_values is not None for run in case.runs)
        assert (case.given("bfloat16") is case) == (not pictures)
    run = every["image"].runs[0]
    given = every["image"].given("bfloat16").runs[0].pixel_values
    assert given is not None
    assert run.pixel_values is not None
    same_bits(given, to_grid(run.pixel_values, "bfloat16"))


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


def test_one_wait_and_few_launches_a_tap(far: Target) -> None:
    result = judged(ReferencePeer(far.backend, "float32"), far, "decoder-split")
    findings = result.local + result.cumulative
    library = far.backend.xp
    masks = sum(f.tap.endswith(".mask") for f in findings)
    waits = Counter(place for place in library.waits if not place.startswith(("inputs.", "model.", "embedding.")))
    logits = sum(f.tap == "logits" for f in result.local)  # and once more for KL and first choice
    assert waits.pop("logits.LogitTest.add") == logits
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
    ("dtype", lambda p: p.astype(np.float64)),
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


# Names


def test_peers_that_are_judged_unasked() -> None:
    assert names() == ["transformers:eager:float32", "transformers:sdpa:float32"]
    assert names("bfloat16") == ["transformers:eager:bfloat16", "transformers:sdpa:bfloat16"]


@pytest.mark.parametrize(
    "name",
    [
        *("transformers", "transformers:", "transformers:flash", "transformers:sdpa:", "transformers:sdpa:float64"),
        *("transformers:sdpa::cuda", "transformers:sdpa:float32:tpu", "transformers:sdpa:float32:cuda:"),
        *("t5g2ref", "t5g2ref:numpy", "t5g2ref:numpy:float64", "t5g2ref:numpy:1:float32", "t5g2ref:cupy:x:float32"),
        *("t5g2ref:numpy:float32:cuda", "nobody", "", "TRANSFORMERS:SDPA", "transformers:sdpa\n"),
    ],
)
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(PeerUnavailable) as caught:
        create(name)
    assert str(caught.value) == f"no peer is called {name!r}; there are: {', '.join(FORMS)}"


def test_a_peer_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError) as why:
        find("cupy")
    with pytest.raises(PeerUnavailable) as caught:
        create("t5g2ref:cupy:float32")
    assert str(caught.value) == f"peer t5g2ref:cupy:float32: {why.value}"


def test_the_judge_s_own_backend_is_shared(devices: None) -> None:
    """Two of one device would keep two pools of memory."""

    class Named(Device):
        name = "cupy:1"

    backend = Named()
    peer = create("t5g2ref:cupy:1:bfloat16", backend)
    assert isinstance(peer, ReferencePeer)
    assert peer._nx.backend is backend
    assert peer.versions() == backend.describe()


# The command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """`command(*arguments)` → exit status, lines on stdout, stderr."""
    pytest.importorskip("rich", reason="needs rich: the report is printed with it")
    return partial(ran, capsys)


def test_the_report_names_the_backend(
    command: Run,
    devices: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from conformance.commands import request as running

    device, file = Device(), tmp_path / "out.json"
    monkeypatch.setattr(running, "find", {"stand-in": device}.__getitem__)
    options = ("--ckpt", "tiny-even", "--case", "short", "--json", str(file), "--peer", "t5g2ref:numpy:float16")
    status, lines, _ = command("--backend", "stand-in", *options)
    assert (status, lines[-1]) == (0, "VERDICT: CONFORMS (on 1 of 21 cases)")
    assert "backend stand-in, device none at all, stand-in 1.0" in " ".join(" ".join(lines).split())
    environment = json.loads(file.read_text())["environment"]
    assert {"backend": "stand-in", "device": "none at all", "stand-in": "1.0"}.items() <= environment.items()
    assert [" ".join(line.split()) for line in lines[1:4]] == ["t5g2ref", "numpy", "case float16 worst place (local)"]


def test_the_report_on_numpy_says_no_more_than_before(command: Run, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ("--ckpt", "tiny-even", "--case", "short", "--json", str(file), "--peer", "t5g2ref:numpy:float32")
    assert command("--backend", "numpy", *options)[0] == 0
    assert set(json.loads(file.read_text())["environment"]) == {"t5g2ref", "numpy", "python"}


def test_a_peer_in_two_spellings_is_judged_once(command: Run) -> None:
    peers = ("--peer", "t5g2ref:numpy:float32") * 2
    _, lines, _ = command("--ckpt", "tiny-even", "--case", "short", *peers)
    assert any(line.startswith("2 comparisons,") for line in lines)  # the case and the exact lane


@pytest.mark.parametrize("name", ["tpu", "numpy:1", "cupy:x", "", "NumPy"])
def test_unknown_backend(name: str, command: Run) -> None:
    status, lines, err = command("--backend", name)
    assert (status, lines) == (2, [])
    assert err.startswith(f"conformance: no backend is called {name!r}; there are: numpy, cupy")
    assert len(err.splitlines()) == 1


def test_backend_that_is_not_to_be_had(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    for arguments in (("--backend", "cupy"), ("--peer", "t5g2ref:cupy:float32")):
        status, lines, err = command(*arguments)
        assert (status, lines) == (2, [])
        assert "CuPy is not installed" in err
        assert len(err.splitlines()) == 1


def test_every_form_of_name_is_listed(command: Run) -> None:
    status, lines, _ = command("list", "peers")
    assert status == 0
    assert lines[:2] == names()
    assert all(any(form in line for line in lines) for form in FORMS)


def test_the_new_pages_import_no_library() -> None:
    """Neither a peer's framework nor a device's: those come with a backend or with a peer's module."""
    pages = ("measure.distance", "arrays", "activations", "checkpoints", "peers.find", "peers.reference")
    imports = ", ".join(f"conformance.{page}" for page in pages)
    code = f"import sys, {imports}\nassert not {{'torch', 'cupy'}} & set(sys.modules)"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


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


def test_tensors_come_in_order_and_are_not_all_made_at_once() -> None:
    tensors, seen = Tensors(50), []
    steps: list[tuple[str, int, int]] = []
    for taken, (name, value) in enumerate(checkpoints._made(tensors, lambda *step: steps.append(step))):
        assert tensors.made <= taken + checkpoints.WORKERS
        seen.append((name, value))
    assert seen == [(f"t{i}", i) for i in range(50)]
    assert steps == [(f"t{i}", i, 50) for i in range(50)]


def test_an_error_in_making_one_is_raised() -> None:
    with pytest.raises(ZeroDivisionError, match="t7"):
        list(checkpoints._made(Tensors(50, bad=7), lambda *_: None))


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
