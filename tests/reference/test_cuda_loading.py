"""Loading to a device, with NumPy in its place: tensors part by part, then whole models."""

from __future__ import annotations

import os
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elsewhere import TYPES, Elsewhere, equal, samples, store
from helpers import Array, generator, same_bits

import t5g2ref
from t5g2ref import backend as backends
from t5g2ref import command_line as command
from t5g2ref.backend import Backend, BackendError
from t5g2ref.backend.cuda import loading
from t5g2ref.checkpoint import folder as weights
from t5g2ref.checkpoint.file import SafetensorsFile
from t5g2ref.checkpoint.folder import WeightsError
from t5g2ref.checkpoint.tensor import STORED
from t5g2ref.commands import generate
from t5g2ref.generate.greedy import greedy
from t5g2ref.weights import arrays


@pytest.mark.parametrize("wanted", TYPES)
@pytest.mark.parametrize("stored", TYPES)
def test_the_same_bits_as_on_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, wanted: str) -> None:
    x = samples(stored, wanted)
    assert x.size > 800
    file = store(tmp_path, before=x[:3], x=x, after=x[:5])
    expected = file.read("x", wanted)
    for part in (64, 1 << 10, 1 << 20):  # 8 to all elements
        monkeypatch.setattr(loading, "PART", part)
        equal(file.read("x", wanted, Elsewhere()), expected)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_every_finite_half_number(tmp_path: Path, stored: str) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(STORED[stored])
    x = x[np.isfinite(x.astype(np.float32))]
    file = store(tmp_path, x=x)
    for wanted in ("float64", "float32", "bfloat16"):
        equal(file.read("x", wanted, Elsewhere()), file.read("x", wanted))


@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("bfloat16", "float32"), ("float64", "float32")]
)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 40])
def test_the_ends_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, stored: str, wanted: str
) -> None:
    x = generator("ends").normal(size=size).astype(np.float32).astype(STORED[stored])
    file = store(tmp_path, before=x, x=x.reshape(-1, 1), after=x)
    monkeypatch.setattr(loading, "PART", 8 * max(STORED[stored].itemsize, STORED[wanted].itemsize))
    equal(file.read("x", wanted, Elsewhere()), file.read("x", wanted))


def test_a_tensor_of_no_dimension(tmp_path: Path) -> None:
    file = store(tmp_path, x=np.array(1.5, np.float16))
    equal(file.read("x", "float32", Elsewhere()), np.array(1.5, np.float32))


def test_two_buffers_serve_every_tensor(tmp_path: Path) -> None:
    x, elsewhere = samples("float32", "float32"), Elsewhere()
    file = store(tmp_path, x=x, y=-x)
    for name in ("x", "y", "x"):
        equal(file.read(name, "float32", elsewhere), file.read(name, "float32"))
    assert [buffer.host.size for buffer in elsewhere.buffers] == [loading.PART, loading.PART]


def test_threads_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PART", 256)
    elsewhere = Elsewhere()
    file = store(tmp_path, x=samples("float32", "bfloat16"), y=generator("y").normal(size=4000))
    found: dict[str, Array] = {}

    def work(name: str, dtype: str) -> None:
        for _ in range(5):
            found[name] = file.read(name, dtype, elsewhere)

    threads = [threading.Thread(target=work, args=pair) for pair in (("x", "bfloat16"), ("y", "float64"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(found["x"], file.read("x", "bfloat16"))
    equal(found["y"], file.read("y", "float64"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 57, -1])
@pytest.mark.parametrize("wanted", TYPES)
@pytest.mark.parametrize("stored", TYPES)
def test_not_finite_is_refused_as_on_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, wanted: str, at: int, bad: float
) -> None:
    monkeypatch.setattr(loading, "PART", 256)
    x = samples(stored, wanted)
    x[at] = bad
    file = store(tmp_path, before=x[1:4], x=x)
    refused_alike(file, wanted, "model.safetensors: x has NaN or Inf, expected finite weights")


@pytest.mark.parametrize(
    ("stored", "wanted", "value"),
    [
        ("float32", "float16", 65520.0),
        ("float64", "float16", 65520.0),
        ("bfloat16", "float16", -1e6),
        ("float64", "float32", 1e39),
        ("float64", "bfloat16", 3.4e38),
        ("float32", "bfloat16", 3.4e38),
    ],
)
def test_overflow_is_refused_as_on_numpy(tmp_path: Path, stored: str, wanted: str, value: float) -> None:
    x = samples(stored, wanted)
    x[300] = value
    refused_alike(store(tmp_path, x=x), wanted, f"model.safetensors: x has values beyond {wanted}'s range")


def refused_alike(file: SafetensorsFile, wanted: str, words: str) -> None:
    messages = []
    for backend in (Backend(), Elsewhere()):
        with pytest.raises(WeightsError) as error:
            file.read("x", wanted, backend)
        messages.append(str(error.value))
    assert messages[0].startswith(words)
    assert messages[1] == messages[0]


def test_a_copy_that_went_wrong_is_no_fault_of_the_file(tmp_path: Path) -> None:
    file = store(tmp_path, x=samples("float32", "float32"))
    with pytest.raises(BackendError, match="x has NaN or Inf on the device and none in the file: the copy went wrong"):
        file.read("x", "float32", Elsewhere(lambda to: to.fill(np.nan)))


@pytest.mark.parametrize("change", ["truncated", "replaced", "touched"])
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("float32", "bfloat16"), ("float64", "float32")]
)
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, wanted: str, change: str
) -> None:
    monkeypatch.setattr(loading, "PART", 1 << 16)
    x = generator("changes").normal(size=100_000).astype(STORED[stored])
    file = store(tmp_path, x=x)

    def act(_: Array) -> None:
        if change == "truncated":
            os.truncate(file.path, 1 << 17)
        elif change == "replaced":
            with file.path.open("r+b") as handle:
                handle.seek(-8, os.SEEK_END)
                handle.write(b"12345678")
                handle.flush()
                os.utime(handle.fileno(), ns=(1, 1))
        else:
            os.utime(file.path, ns=(1, 1))

    with pytest.raises(WeightsError, match="changed while x was being read; open it again"):
        file.read("x", wanted, Elsewhere(act))


@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("bfloat16", "float32"), ("float64", "bfloat16")]
)
def test_the_host_never_holds_a_whole_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, wanted: str
) -> None:
    monkeypatch.setattr(loading, "PART", 1 << 16)
    x = generator("large").normal(size=1 << 21).astype(STORED[stored])
    file, elsewhere = store(tmp_path, x=x), Elsewhere()
    del x
    tracemalloc.start()
    try:
        out = file.read("x", wanted, elsewhere)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # the result, which would be the device's; the buffers, and what a part takes to be converted and looked at
    assert out.nbytes <= peak <= out.nbytes + 12 * loading.PART


# ---- whole models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "kept"), [("float64", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")])
def test_a_model_elsewhere(dtype: Any, kept: str) -> None:
    """Weights of the float64 oracle are kept as float32 where they are stored no wider, and the logits are the same."""
    folder, elsewhere = t5g2ref.bundled("tiny"), Elsewhere()
    model, here = t5g2ref.load(folder, dtype, backend=elsewhere), t5g2ref.load(folder, dtype)
    found = [x for _, x in arrays(model.weights)]
    assert {x.dtype for x in found} == {STORED[kept]}
    assert {x.dtype for _, x in arrays(here.weights)} == {STORED[dtype]}
    assert elsewhere.asked == [(sum(x.nbytes for x in found), f"the weights of {folder}")]
    assert model.nx.backend is elsewhere
    assert here.nx.backend is backends.NUMPY
    same_bits(model([[5, 17, 42]], [[5, 8]]).logits, here([[5, 17, 42]], [[5, 8]]).logits)


def test_float64_that_is_stored_is_kept(tmp_path: Path) -> None:
    config, tree = weights.load(t5g2ref.bundled("tiny"), "float64")
    flat = {name: x.astype(np.float64) for name, x in arrays(tree)}
    weights.save(tmp_path, config, flat.items(), dtype="float64")
    _, read = weights.load(tmp_path, "float64", backend=Elsewhere())
    assert {x.dtype for _, x in arrays(read)} == {np.dtype(np.float64)}


def test_no_room_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere()

    def full(size: int, what: str) -> None:
        raise BackendError(f"no room for {size} bytes of {what}")

    monkeypatch.setattr(elsewhere, "require", full)
    with pytest.raises(BackendError, match=r"no room for \d+ bytes of the weights of .*tiny"):
        t5g2ref.load(t5g2ref.bundled("tiny"), backend=elsewhere)
    assert not elsewhere.buffers


def test_generation_stays_in_scope() -> None:
    elsewhere = Elsewhere()
    model = t5g2ref.load(t5g2ref.bundled("tiny"), backend=elsewhere)
    depths = []
    greedy(model, [[33, 17, 42, 90]], max_new_tokens=3, on_token=lambda token: depths.append(elsewhere.depth))
    assert depths == [1, 1, 1]
    assert elsewhere.depth == 0


def test_the_command_runs_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "tiny", "--ids", "5,17,42", "--max-new-tokens", "5"]
    assert command.main(arguments) == 0
    expected = capsys.readouterr().out
    elsewhere, brought = Elsewhere(), []
    monkeypatch.setattr(elsewhere, "host", lambda x: brought.append(x) or np.asarray(x))
    monkeypatch.setattr(generate, "find", {"cupy:1": elsewhere}.__getitem__)
    assert command.main([*arguments, "--backend", "cupy:1"]) == 0
    assert capsys.readouterr().out == expected
    assert len(expected.split()) == 5
    assert len(brought) >= 5  # every id that is printed
    assert elsewhere.buffers


@pytest.mark.parametrize(
    ("name", "words"),
    [("cupy", "t5g2ref: CuPy is not installed: pip install"), ("jax", "t5g2ref: no backend is called 'jax'")],
)
def test_the_command_says_what_is_amiss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert command.main(["generate", "tiny", "--ids", "5,17,42", "--backend", name]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(words)
    assert not said.out


def test_the_error_is_the_packages() -> None:
    assert t5g2ref.BackendError is BackendError
    with pytest.raises(t5g2ref.BackendError, match="no backend is called 'cuda'"):
        t5g2ref.load(t5g2ref.bundled("tiny"), backend="cuda")
