"""The same source on CuPy, judged as any peer is, tap by tap; and the judge itself there. Run with: pytest -m gpu

Truth is NumPy's float64 first: what it is on the device is then held against the same peers.
"""

from __future__ import annotations

import gc
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging import judged

from conformance.activations import Dump
from conformance.arrays import to_backend
from conformance.cases.case import Case
from conformance.cases.catalogue import build
from conformance.checkpoints import resolve
from conformance.measure import sums, sums_at_once
from conformance.peers.find import create
from conformance.peers.protocol import Peer
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref import bundled, load
from t5g2ref.backend import NUMPY, Backend, find
from t5g2ref.dtypes import DTYPES, HALF, DType
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import SDPA, Numerics
from t5g2ref.trace import OFF, Trace, recorder

pytestmark = pytest.mark.gpu

TARGET = resolve("tiny", synthetic=False)[0]
CASES = {case.name: case for case in build(TARGET.config)}
TYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def device() -> Backend:
    cupy = pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device; CuPy sees none")
    return find("cupy")


@pytest.fixture(scope="module")
def targets(device: Backend) -> dict[str, Target]:
    """The checkpoint for a judge on NumPy, and for one on the device."""
    return {"numpy": TARGET, "cupy": resolve("tiny", synthetic=False, backend=device)[0]}


@pytest.fixture(scope="module")
def torch(peer_installed: None) -> Any:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a torch that sees the CUDA device")
    return torch


def conforms(peer: Peer, target: Target, case: Case) -> None:
    result = judged(peer, target, case)
    assert not result.error
    assert result.passed, result.culprit
    worst = result.worst()
    assert worst is not None
    print(f"{peer.name} {case.name}, truth on {target.backend.name}: worst local {worst.worst:.2f} at {worst.tap}")


# The reference on CuPy


@pytest.mark.parametrize("truth", ["numpy", "cupy"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cupy_conforms(case: Case, dtype: str, truth: str, device: Backend, targets: dict[str, Target]) -> None:
    conforms(create(f"t5g2ref:cupy:{dtype}", device), targets[truth], case)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cupy_fast_conforms(case: Case, dtype: str, device: Backend, targets: dict[str, Target]) -> None:
    conforms(create(f"t5g2ref:cupy:{dtype}:fast", device), targets["cupy"], case)


@pytest.mark.parametrize("name", ["short", "image"])
def test_numpy_conforms_to_a_truth_on_the_device(name: str, targets: dict[str, Target]) -> None:
    conforms(create("t5g2ref:numpy:float32"), targets["cupy"], CASES[name])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("parts", "width"), [(1, 20_000), (4, 256), (3, 7)])
def test_a_tap_s_sums_are_the_definition_s(device: Backend, dtype: DType, parts: int, width: int) -> None:
    rng = np.random.default_rng(width)
    truth = rng.normal(size=(9, parts * width))
    with device.scope():
        nx, xp = Numerics(dtype, SDPA, device), device.xp
        near = [nx.array(truth * (1 + rng.normal(size=truth.shape) * 0.01)) for _ in range(6)]
        patterns = [xp.asarray(truth * (1 + rng.normal(size=truth.shape) * 0.02)) for _ in range(4)]
        rows, bound = [xp.asarray(truth), *near, *patterns], xp.asarray(np.abs(truth) * 0.01)
        asked = (xp, rows, bound, 6, parts, 2.0**-126)
        assert sums_at_once.takes(*asked[:-1])
        found, expected = (device.host(made(*asked)) for made in (sums_at_once.sums, sums._sums))
    assert np.isfinite(expected).all()
    assert (np.abs(found - expected) <= 1e-9 * np.abs(expected).max(axis=1, keepdims=True)).all()


class Faulty(ReferencePeer):
    """The reference with one value changed, and gone on with."""

    tap, factor = "decoder.layers.2.mlp.act_fn", 1.5

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        changed = name == self.tap
        return super()._shown(
            dump, name, (value.astype("float64") * self.factor).astype(value.dtype) if changed else value
        )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("factor", "status"), [(1.5, "values"), (float("nan"), "nan")])
def test_a_fault_is_found_at_its_tap(
    factor: float, status: str, dtype: DType, device: Backend, targets: dict[str, Target]
) -> None:
    peer = Faulty(device, dtype)
    peer.factor = factor
    result = judged(peer, targets["cupy"], CASES["short"])
    assert result.culprit is not None
    first = "ceiling" if dtype in HALF and status == "values" else status  # the bound speaks before the ratio
    assert (result.culprit.tap, result.culprit.status) == (peer.tap, first)


def test_float32_products_are_not_tf32(device: Backend) -> None:
    """A product of 1 + 2⁻²⁰ by 1 is exact in float32 and loses its last bits in TF32."""
    nx, n = Numerics("float32", SDPA, device), 256
    with nx.scope():
        x = nx.xp.full((n, n), 1 + 2.0**-20, dtype="float32")
        y = nx.linear(x, nx.xp.eye(n, dtype="float32"))
    assert np.array_equal(device.host(y), device.host(x))


def steps(model: T5Gemma2, pieces: list[int], trace_of: Any) -> list[np.ndarray[Any, Any]]:
    """Logits of a padded batch with images, the decoder's ids in pieces of these lengths over one cache."""
    run = CASES["images"].runs[0]
    encoded = model.encode(run.input_ids, run.attention_mask, run.position_ids, run.pixel_values, trace_of())
    cache, done, found = model.start(encoded, trace_of()), 0, []
    ids = np.arange(2, 2 + encoded.hidden.shape[0] * sum(pieces)).reshape(-1, sum(pieces))
    for piece in pieces:
        hidden, cache = model.decode(ids[:, done : done + piece], cache, trace=trace_of())
        found.append(model.nx.backend.host(model.logits(hidden, trace_of())))
        done += piece
    return found


@pytest.mark.parametrize("pieces", [[9], [4, 1, 1, 3]], ids=["uncached", "cached"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_taps_change_no_bit(dtype: DType, pieces: list[int], device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels that fuse two taps run only where nobody listens, so the judge sees others than a user runs."""
    fused = importlib.import_module("t5g2ref.backend.cuda.fused")
    launch, launched = fused.launch, set[str]()
    monkeypatch.setattr(fused, "launch", lambda kernel, *args: (launched.add(kernel), launch(kernel, *args)))
    model = load(bundled("tiny"), dtype, backend=device)
    quiet, alone = steps(model, pieces, lambda: OFF), set(launched)
    launched.clear()
    seen: list[dict[str, Any]] = []

    def heard() -> Trace:
        seen.append({})
        return recorder(seen[-1])

    shown = steps(model, pieces, heard)
    assert {"turned_norm", "add_norm", "gated_gelu"} <= alone
    assert not {"turned_norm", "add_norm", "gated_gelu"} & launched
    assert sum(map(len, seen)) > 100
    for a, b in zip(quiet, shown, strict=True):
        assert np.isfinite(a.astype(np.float64)).all()
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


# The judge there


def test_what_the_device_has_no_room_for(device: Backend) -> None:
    """On the host and back: the same bits, in every type that a peer shows."""
    kinds = ("float32", "float16", HALF["bfloat16"], "bool")
    values = [np.arange(-6, 6).reshape(3, 4).astype(kind) for kind in kinds]
    for room in (0, 1 << 20):
        with Dump(device, device_bytes=room) as dump:
            dump.new_call()
            for i, value in enumerate(values):
                dump.put(str(i), to_backend(value, device))
            for i, value in enumerate(values):
                found = dump.get(0, str(i))
                assert isinstance(found, device.xp.ndarray)
                assert found.dtype == value.dtype
                assert device.host(found).tobytes() == value.tobytes()


def test_command(device: Backend, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="needs rich: the report is printed with it")
    from conformance.__main__ import main

    file = tmp_path / "out.json"
    options = ["--ckpt", "tiny-even", "--case", "short", "--peer", "t5g2ref:cupy:bfloat16", "--json", str(file)]
    assert main(["--backend", "cupy", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "VERDICT: CONFORMS (on 1 of 25 cases)"
    environment = json.loads(file.read_text())["environment"]
    assert environment["backend"] == "cupy"
    assert device.describe().items() <= environment.items()


# transformers there

others_may_warn = pytest.mark.filterwarnings("default")  # of what they do on a device: their affair


@others_may_warn
@pytest.mark.parametrize("name", ["short", "image", "far-positions", "decoder-split", "loss", "sequence-single"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_conforms(
    attention: str, dtype: str, name: str, torch: Any, device: Backend, targets: dict[str, Target]
) -> None:
    peer = create(f"transformers:{attention}:{dtype}", device)
    assert peer.name == f"transformers:{attention}:{dtype}:cuda"
    conforms(peer, targets["cupy"], CASES[name])


@others_may_warn
def test_transformers_conforms_to_a_truth_on_numpy(torch: Any) -> None:
    for dtype in ("float32", "bfloat16"):
        conforms(create(f"transformers:sdpa:{dtype}:cuda"), TARGET, CASES["image"])


@others_may_warn
@pytest.mark.parametrize("dtype", TYPES)
def test_synthetic_weights_are_shared(dtype: DType, torch: Any, device: Backend) -> None:
    """The peer's parameters are the judge's arrays, on the device and without a copy."""
    assert TARGET.folder is not None
    (target,) = resolve(str(TARGET.folder), synthetic=True, backend=device)
    peer: Any = create(f"transformers:sdpa:{dtype}", device)
    peer.open(target)
    name = "decoder.layers.1.mlp.up_proj.weight"
    parameter = peer.model(CASES["short"]).get_parameter(f"model.{name}")
    assert parameter.data_ptr() == target.rounded(dtype)[name].data.ptr
    conforms(peer, target, CASES["short"])


@pytest.mark.parametrize("kind", [*TYPES, "bool"])
def test_tensors_are_shared(kind: str, torch: Any, device: Backend) -> None:
    """An array over a tensor's memory holds it: what is made after the tensor is gone gets other memory."""
    from conformance.peers.torch.tensors import to_array

    tensor = (torch.arange(1 << 16, device="cuda").reshape(256, 256) % 2).to(getattr(torch, kind))
    expected, pointer = tensor.cpu().double().numpy(), tensor.data_ptr()
    array = to_array(tensor, device)
    assert array.data.ptr == pointer
    del tensor
    gc.collect()
    others = [torch.full((256, 256), 7, dtype=getattr(torch, kind), device="cuda") for _ in range(8)]
    assert pointer not in [other.data_ptr() for other in others]
    assert np.array_equal(device.host(array).astype(np.float64), expected)
    assert np.array_equal(to_array(others[0], NUMPY).astype(np.float64), others[0].cpu().double().numpy())
