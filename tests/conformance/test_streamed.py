"""Streamed weights: what is judged is the same, by truth, controls and peer alike, and nothing is shared that should
not be."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from dumping import case_of
from helpers import same_bits
from judging import Faulty, judged

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from command_line import ran

from conformance import activations, checkpoints
from conformance.activations import Dump
from conformance.checkpoints import resolve
from conformance.defects.all import find
from conformance.errors import CheckpointError
from conformance.judge.judgement import Judgement
from conformance.judge.sitting import fingerprint
from conformance.peers.find import create
from conformance.peers.reference import ReferencePeer
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import NUMPY
from t5g2ref.dtypes import DType
from t5g2ref.on_demand import OnDemand
from t5g2ref.params import count

TABLE = "encoder.text_model.embed_tokens.weight"
TINY = str(bundled("tiny"))


@pytest.fixture(scope="module")
def both() -> tuple[Target, Target]:
    """The bundled checkpoint, whole and streamed."""
    whole, streamed = (resolve("tiny", synthetic=False, stream=stream)[0] for stream in (False, True))
    assert (whole.streamed, streamed.streamed) == (False, True)
    return whole, streamed


def words(found: Judgement) -> str:
    """All of it but the seconds; as text, in which NaN equals itself."""
    return repr(replace(found, seconds={}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["short", "image", "sequence-single"])
def test_judgements_are_equal_to_the_digit(dtype: DType, name: str, both: tuple[Target, Target]) -> None:
    one, other = (judged(ReferencePeer(NUMPY, dtype), target, name) for target in both)
    assert one.passed
    assert len(one.local) > 100
    assert words(one) == words(other)


@pytest.mark.parametrize("tap", ["encoder.text_model.layers.2.mlp.down_proj", "decoder.layers.3.self_attn.o_proj"])
def test_a_fault_is_found_at_its_tap(tap: str, both: tuple[Target, Target]) -> None:
    result = judged(Faulty(NUMPY, "float32", tap, 1.01), both[1], "short")
    assert [f.tap for f in result.local if not f.passed] == [tap]


@pytest.mark.parametrize("key", ["D31", "D09", "D17"])
def test_a_defect_has_the_same_name(key: str, both: tuple[Target, Target]) -> None:
    fault = find([key])[0]
    names = []
    for target in both:
        result = judged(FaultyPeer(fault.inject, dtype=cast(DType, fault.lane)), target, fault.case)
        names.append([(s.defect, s.tap, s.coefficient) for s in result.named if s.named])
    assert names[0] == names[1]
    assert key in {defect for defect, *_ in names[0]}


def test_synthetic_weights_are_made_as_they_are_needed() -> None:
    whole, streamed = (resolve(TINY, synthetic=True, stream=stream)[0] for stream in (False, True))
    assert list(whole.weights) == list(streamed.weights)
    for name, value in whole.weights.items():
        assert np.array_equal(value, streamed.weights[name].astype(np.float32)), name


def test_a_peer_that_writes_into_shared_weights_is_caught() -> None:
    """In a layer it does no harm: that is let go, and read anew. The table stays, and its bits are looked at."""
    flat = {name: np.array(value) for name, value in resolve("tiny", synthetic=False)[0].weights.items()}
    target = Target("tiny", resolve("tiny", synthetic=False)[0].config, OnDemand(flat, lambda name: flat[name].copy()))
    peer, layer = create("t5g2ref:numpy:float32"), "decoder.layers.0.mlp.up_proj.weight"
    before = fingerprint(target, peer)
    target.weights[layer][:] = 3.0
    assert fingerprint(target, peer) == before
    assert np.array_equal(target.weights[layer], flat[layer])
    target.weights[TABLE][0, 0] += 1
    assert fingerprint(target, peer) != before


def test_a_quantised_peer_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "port.py"
    path.write_text(
        "from conformance.peers.find import create as made\n"
        "def create(name, backend):\n"
        "    peer = made('t5g2ref:numpy:float32', backend)\n"
        "    peer.quantised = 'int8-row'\n"
        "    return peer\n"
    )
    status, lines, _ = ran(capsys, "--ckpt", TINY, "--peer", str(path), "--case", "short", "--lane", "fp32", "--stream")
    assert status == 3
    assert any("give --no-stream" in line for line in lines)


# Which checkpoints are streamed


def test_free_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(TINY, synthetic=False)[0].config
    monkeypatch.setattr(checkpoints, "SMALL", 0)
    needed, least = checkpoints.bytes_whole(config), checkpoints.bytes_streamed(config)
    assert needed - checkpoints.BESIDE == 8 * count(config)
    assert least < needed
    for free, streams in ((needed, False), (needed - 1, True), (least, True)):
        monkeypatch.setattr(checkpoints, "free_bytes", lambda _, free=free: free)
        for synthetic in (False, True):
            target = resolve(TINY, synthetic=synthetic)[0]
            assert target.streamed is streams
            assert any("layer by layer (all at once would take" in note for note in target.notes) is streams
    monkeypatch.setattr(checkpoints, "free_bytes", lambda _: least - 1)
    with pytest.raises(CheckpointError, match="GiB of memory even layer by layer, found"):
        resolve(TINY, synthetic=False)
    assert not resolve(TINY, synthetic=False, stream=False)[0].streamed, "who says no is believed"
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints, "free_bytes", lambda _: 0)
    assert not resolve(TINY, synthetic=False)[0].streamed, "a small one always fits"


def test_the_forecast_is_held_against_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--ckpt", TINY, "--peer", "t5g2ref:numpy:float32", "--case", "short", "--lane", "fp32", "--stream"]
    status, lines, err = ran(capsys, *arguments, "--no-progress")
    assert status == 0, err
    assert err.startswith("conformance: weights are streamed; predicted: ")
    text = " ".join(line.strip() for line in lines)
    assert "weights were read layer by layer (as asked); no peer's own loader was judged" in text
    assert "predicted before the run: " in text
    status, lines, err = ran(capsys, *arguments[:-1], "--no-progress")
    assert "predicted" not in err + " ".join(lines)


def test_a_tensor_that_is_found_broken_in_the_middle(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is the file's fault and no peer's: one line, and the status of bad input."""
    from t5g2ref.checkpoint.folder import load, save
    from t5g2ref.weights import arrays

    config, weights = load(TINY, "float32")
    save(tmp_path, config, arrays(weights), dtype="float32")
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # NaN, in the last tensor of the file
    path.write_bytes(data)
    status, lines, err = ran(
        capsys, "--ckpt", str(tmp_path), "--peer", "t5g2ref:numpy:float32", "--case", "short", "--lane", "fp32",
        "--stream", "--no-progress",
    )  # fmt: skip
    assert (status, lines) == (2, [])
    last = err.splitlines()[-1]
    assert "has NaN or Inf" in last
    assert "Traceback" not in err


# transformers


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize(
    ("name", "dtype"), [("image", "float32"), ("cross-cached", "bfloat16"), ("sequence-single", "float32")]
)
def test_transformers_gives_the_same_bits(name: str, dtype: str) -> None:
    """Synthetic weights: then both models are built from the same arrays."""
    whole, streamed = (resolve(TINY, synthetic=True, stream=stream)[0] for stream in (False, True))
    case = case_of(whole, name).given(dtype)
    shown: list[list[dict[str, Any]]] = []
    for target in (whole, streamed):
        peer = create(f"transformers:sdpa:{dtype}:cpu")
        peer.open(target)
        with Dump() as dump:
            peer.run(case.copied(), dump)
            shown.append([{n: np.array(dump.get(c, n)) for n in dump.names(c)} for c in range(dump.calls)])
        peer.close()
    assert [list(call) for call in shown[0]] == [list(call) for call in shown[1]]
    for one, other in zip(*shown, strict=True):
        for tap, value in one.items():
            same_bits(other[tap], value)


@pytest.mark.usefixtures("peer_installed")
def test_layers_of_transformers_have_no_memory_between_runs() -> None:
    import torch

    from conformance.cases.case import Case

    register = torch.nn.Module.register_parameter
    target = resolve(TINY, synthetic=True, stream=True)[0]
    peer: Any = create("transformers:sdpa:float32:cpu")
    peer.open(target)
    model = peer.model(Case("short", "", ()))
    assert torch.nn.Module.register_parameter is register
    with Dump() as dump:
        peer.run(case_of(target, "image").copied(), dump)
    layers = {name: p for name, p in model.named_parameters() if ".layers." in name}
    others = {name: p for name, p in model.named_parameters() if ".layers." not in name}
    assert len(layers) > 100
    assert {p.device.type for p in layers.values()} == {"meta"}
    assert {p.device.type for p in others.values()} == {"cpu"}
    assert all(buffer.device.type == "cpu" for buffer in model.buffers())
    assert model.lm_head.out_proj.weight is model.get_input_embeddings().weight
    assert isinstance(target.weights, OnDemand)


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("name", ["image", "decoder-steps"])
def test_what_a_forward_shows_is_kept_once_and_of_a_repetition_not_at_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken by values that are kept until the forward ends: of three pictures at 1b they are 30 GiB."""
    monkeypatch.setattr(activations, "LARGE_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (target,) = resolve("tiny-even", synthetic=False)
    case, peer = case_of(target, name), create("transformers:sdpa", NUMPY)
    peer.open(target)

    def files() -> int:
        return sum(1 for path in tmp_path.rglob("*") if path.is_file())

    with Dump(memory_bytes=0) as dump, Dump() as usual:
        peer.run(case.copied(), dump)
        shown = sum(len(dump.names(call)) for call in range(dump.calls))
        assert files() == shown > 300
        with Dump(memory_bytes=0, first=dump) as again:
            peer.run(case.copied(), again)
            assert files() == shown
            assert all(again.repeats(call, tap) for call in range(dump.calls) for tap in dump.names(call))
        peer.run(case.copied(), usual)
        for call in range(usual.calls):
            assert dump.names(call) == usual.names(call)
            for tap in usual.names(call):
                same_bits(dump.get(call, tap), usual.get(call, tap))
