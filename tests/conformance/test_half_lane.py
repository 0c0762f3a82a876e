"""transformers in half precision and on a device of its choice: how it is named, built, read, and judged on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers import normal, same_bits
from judging import judged
from processes import python
from standin import Device

pytest.importorskip("torch", reason="needs torch: its tensors are exchanged")
pytest.importorskip("transformers", reason="needs transformers: it is judged")

import torch
from injected import assert_injected

from conformance.arrays import to_backend
from conformance.cases import catalogue as cases
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from conformance.errors import PeerUnavailable
from conformance.peers.find import create
from conformance.peers.torch.tensors import from_array, to_array, without_tf32
from conformance.peers.torch.transformers import TransformersPeer
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import NUMPY
from t5g2ref.dtypes import DType

pytestmark = pytest.mark.peer

SOME = ("short", "padded-left-cached", "image", "far-positions", "loss", "sequence-single", "sequence-multi")
KINDS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny", synthetic=False)[0]


# Judged


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bfloat16_conforms(attention: str, name: str, target: Target) -> None:
    result = judged(create(f"transformers:{attention}:bfloat16:cpu"), target, name)
    assert not result.error
    assert result.passed, result.culprit


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_float16_conforms(attention: str, target: Target) -> None:
    result = judged(create(f"transformers:{attention}:float16:cpu"), target, "short")
    assert result.passed, result.culprit


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_synthetic_weights_conform(dtype: str) -> None:
    """They are handed over as arrays, and not read from a folder by the peer's loader."""
    (target,) = resolve(str(bundled("tiny")), synthetic=True)
    for name in ("short", "sequence-single"):
        result = judged(create(f"transformers:sdpa:{dtype}"), target, name)
        assert result.passed, result.culprit


def test_the_judge_may_be_on_a_device_of_its_own(devices: None) -> None:
    (target,) = resolve(str(bundled("tiny")), synthetic=True, backend=Device())
    for dtype in ("float32", "bfloat16"):
        result = judged(create(f"transformers:eager:{dtype}:cpu", target.backend), target, "short")
        assert result.passed, result.culprit


class Faulty(TransformersPeer):
    """transformers with one fault."""

    def __init__(self, dtype: DType, inject: Callable[[Any], None]) -> None:
        super().__init__("sdpa", dtype)
        self._inject = inject

    def _build(self, case: Case) -> Any:
        model = super()._build(case)
        self._inject(model)
        return model


def exchanged(model: Any) -> None:
    mlp = model.model.encoder.text_model.layers[2].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def without_one(model: Any) -> None:
    weight = model.model.decoder.layers[1].pre_feedforward_layernorm.weight
    weight.data = weight.data - 1


def rope_in_half(model: Any) -> None:
    """What `model.to(torch.bfloat16)` does to the inverse frequencies, which are meant to stay in float32."""
    rope = model.model.decoder.rotary_emb
    rope.full_attention_inv_freq = rope.full_attention_inv_freq.bfloat16()


@pytest.mark.parametrize(
    ("inject", "tap", "name"),
    [
        (exchanged, "encoder.text_model.layers.2.mlp.gate_proj", "short"),
        (without_one, "decoder.layers.1.pre_feedforward_layernorm", "short"),
        (rope_in_half, "decoder.rotary_emb.full_attention.cos", "far-positions"),
    ],
)
def test_fault_in_bfloat16_is_found_at_its_tap(inject: Any, tap: str, name: str, target: Target) -> None:
    (case,) = cases.select(cases.build(target.config), [name])
    assert_injected(Faulty("bfloat16", inject), TransformersPeer("sdpa", "bfloat16"), target, case)
    result = judged(Faulty("bfloat16", inject), target, name)
    assert result.deviates
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (tap, "ceiling")  # proof, before any statistic
    assert result.culprit.ceiling > 10


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_part_is_in_the_type(dtype: DType, target: Target) -> None:
    (case,) = cases.select(cases.build(target.config), ["token"])
    for checkpoint in (target, *resolve(str(bundled("tiny")), synthetic=True)):
        peer = TransformersPeer("eager", dtype)
        peer.open(checkpoint)
        model = peer.model(case)
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
        assert model.model.decoder.rotary_emb.full_attention_inv_freq.dtype == torch.float32


# Named


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """So many CUDA devices for torch."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


def on(index: int) -> Device:
    device = Device()
    device.xp.cuda.runtime.getDevice = lambda: index
    return device


@pytest.mark.parametrize(
    ("name", "backend", "count", "shown"),
    [
        ("transformers:sdpa", None, 2, "transformers:sdpa"),
        ("transformers:sdpa:float32", None, 2, "transformers:sdpa"),
        ("transformers:sdpa:float32:cpu", 0, 2, "transformers:sdpa"),
        ("transformers:eager:bfloat16", None, 2, "transformers:eager:bfloat16:cpu"),
        ("transformers:sdpa", 0, 2, "transformers:sdpa:float32:cuda"),
        ("transformers:sdpa", 1, 2, "transformers:sdpa:float32:cuda:1"),
        ("transformers:sdpa:float16", 0, 1, "transformers:sdpa:float16:cuda"),
        ("transformers:sdpa", 0, 0, "transformers:sdpa"),  # CuPy sees a card, torch is the CPU's
        ("transformers:sdpa", 1, 1, "transformers:sdpa"),
        ("transformers:sdpa:float32:cuda", None, 1, "transformers:sdpa:float32:cuda"),
        ("transformers:sdpa:float32:cuda:0", None, 1, "transformers:sdpa:float32:cuda"),
        ("transformers:sdpa:bfloat16:cuda:1", None, 2, "transformers:sdpa:bfloat16:cuda:1"),
    ],
)
def test_type_and_device_of_a_name(
    name: str,
    backend: int | None,
    count: int,
    shown: str,
    cards: Any,
    devices: None,
) -> None:
    cards(count)
    peer = create(name, NUMPY if backend is None else on(backend))
    assert peer.name == shown
    assert peer.dtype == [*shown.split(":"), "float32"][2]
    assert ("tf32 in torch" in peer.versions()) == ("cuda" in shown)


@pytest.mark.parametrize(
    ("device", "count", "seen"),
    [("cuda", 0, "sees no CUDA device"), ("cuda:1", 1, "sees 1 such device;"), ("cuda:7", 2, "sees 2 such devices;")],
)
def test_a_device_that_torch_does_not_see(device: str, count: int, seen: str, cards: Any) -> None:
    cards(count)
    with pytest.raises(PeerUnavailable) as caught:
        create(f"transformers:sdpa:float32:{device}")
    assert str(caught.value).startswith(f"transformers on {device}: torch {torch.__version__} {seen}")
    assert "say cpu in the peer's name" in str(caught.value)


# Tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_arrays_and_tensors(kind: str, shape: tuple[int, ...]) -> None:
    value = normal("tensor", *shape, scale=3.0).astype(KINDS[kind])
    tensor = from_array(value, getattr(torch, kind), "cpu")
    assert (tensor.dtype, tuple(tensor.shape)) == (getattr(torch, kind), shape)
    assert tensor.double().tolist() == value.astype(np.float64).tolist()
    back = to_array(tensor, NUMPY)
    same_bits(back, value)
    assert np.shares_memory(back, value), "neither way copies"


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_s_array_comes_down_for_the_cpu(kind: str, devices: None) -> None:
    """By its own library: this torch may be one for the CPU alone."""
    value = normal("down", 3, 5).astype(KINDS[kind])
    tensor = from_array(to_backend(value, Device()), getattr(torch, kind), "cpu")
    same_bits(to_array(tensor, NUMPY), value)


def test_a_transposed_tensor_becomes_a_dense_array() -> None:
    tensor = torch.arange(6).reshape(2, 3).T.bfloat16()
    back = to_array(tensor, NUMPY)
    assert back.flags.c_contiguous
    assert back.astype(int).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_arrays_of_another_type_are_rounded_by_torch() -> None:
    value = np.array([1 + 2**-8, 1 + 3 * 2**-8, 65520.0], np.float32)  # both ties go to the even neighbour
    assert from_array(value, torch.bfloat16, "cpu").tolist() == [1.0, 1 + 2**-6, 65536.0]
    assert from_array(value, torch.float16, "cpu").tolist() == [1 + 2**-8, 1 + 3 * 2**-8, float("inf")]


def test_torch_s_own_switches() -> None:
    """In a process that has set nothing: convolutions would be in TF32, and reading the old names stays possible."""
    code = """if True:
        import torch
        from conformance.peers.torch.tensors import without_tf32
        assert torch.backends.cudnn.allow_tf32
        with without_tf32():
            pass
        assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32"""
    done = python("-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr


def test_without_tf32() -> None:
    """What was set before comes back, even after an error."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has the older switches")
    before = matmul.fp32_precision, conv.fp32_precision
    with without_tf32():
        assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
    assert (matmul.fp32_precision, conv.fp32_precision) == before
    with pytest.raises(ZeroDivisionError), without_tf32():
        raise ZeroDivisionError
    assert (matmul.fp32_precision, conv.fp32_precision) == before


def test_the_switches_are_a_peer_s_own(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set while a peer on a device is open, whatever comes between; the CPU's peer leaves them alone."""
    conv = torch.backends.cudnn.conv
    if not hasattr(conv, "fp32_precision"):
        pytest.skip("this torch has the older switches")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    before = conv.fp32_precision
    for device, expected in (("cpu", before), ("cuda", "ieee")):
        peer = TransformersPeer("sdpa", "float32", device)
        for _ in range(2):
            peer.open(target)
            assert conv.fp32_precision == expected
        peer.close()
        peer.close()
        assert conv.fp32_precision == before
