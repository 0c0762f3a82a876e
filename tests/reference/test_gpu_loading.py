"""Loading to a CUDA device: the bits of the NumPy load, memory limits, scopes in threads. Run with: pytest -m gpu"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elsewhere import TYPES, samples, store
from helpers import generator, same_bits

import t5g2ref
from t5g2ref.backend import BackendError, find
from t5g2ref.backend.cuda import loading
from t5g2ref.checkpoint import folder as weights
from t5g2ref.checkpoint.folder import WeightsError
from t5g2ref.checkpoint.tensor import STORED
from t5g2ref.generate.beam import beam_search
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.hypotheses import Search
from t5g2ref.generate.rules import Rules, Sampling
from t5g2ref.generate.sample import sample
from t5g2ref.weights import arrays

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy() -> Any:
    module = pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
    if not module.cuda.is_available():
        pytest.skip("needs a CUDA device; CuPy sees none")
    return module


@pytest.fixture
def device(cupy: Any) -> Any:
    return find("cupy")


# ---- bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", TYPES)
@pytest.mark.parametrize("stored", TYPES)
def test_the_same_bits_as_on_numpy(
    tmp_path: Path, device: Any, monkeypatch: pytest.MonkeyPatch, stored: str, wanted: str
) -> None:
    """Subnormal numbers, ties and both zeros among them; in one part and in many."""
    file = store(tmp_path, before=samples(stored, wanted)[:3], x=samples(stored, wanted))
    expected = file.read("x", wanted)
    for part in (256, 4096, loading.PART):
        monkeypatch.setattr(loading, "PART", part)
        backend = find("cupy")  # whose buffers are of that size
        found = file.read("x", wanted, backend)
        assert type(found).__module__.startswith("cupy")
        same_bits(backend.host(found), expected)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_every_finite_half_number(tmp_path: Path, device: Any, stored: str) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(STORED[stored])
    file = store(tmp_path, x=x[np.isfinite(x.astype(np.float32))])
    for wanted in ("float64", "float32", "bfloat16"):
        same_bits(device.host(file.read("x", wanted, device)), file.read("x", wanted))


@pytest.mark.parametrize("wanted", ["bfloat16", "float16"])
def test_random_float32_patterns_are_rounded_as_on_numpy(tmp_path: Path, device: Any, wanted: str) -> None:
    x = generator("patterns").integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore", under="ignore"):
        x = x[np.isfinite(x.astype(STORED[wanted]).astype(np.float32))]
    file = store(tmp_path, x=x)
    same_bits(device.host(file.read("x", wanted, device)), file.read("x", wanted))


@pytest.mark.parametrize(
    ("stored", "wanted"), [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32")]
)
def test_many_parts_of_full_size(tmp_path: Path, device: Any, stored: str, wanted: str) -> None:
    """Five and a half parts: buffers are filled again while the device still copies from the other."""
    size = 11 * loading.PART // (2 * STORED[stored].itemsize) + 3
    x = generator("large").integers(0, 1 << 14, size, dtype=np.uint16).view(STORED["bfloat16"]).astype(STORED[stored])
    file = store(tmp_path, x=x.reshape(1, -1))
    begin = time.perf_counter()
    found = file.read("x", wanted, device)
    seconds = time.perf_counter() - begin
    same_bits(device.host(found), file.read("x", wanted))
    print(f"{stored} to {wanted}: {x.nbytes / seconds / 1e9:.2f} GB/s of {x.nbytes / 1e6:.0f} MB, the first time")
    begin = time.perf_counter()
    file.read("x", wanted, device)
    print(f"{stored} to {wanted}: {x.nbytes / (time.perf_counter() - begin) / 1e9:.2f} GB/s, buffers and kernels made")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["tiny", "tiny-even"])
def test_a_checkpoint(device: Any, name: str, dtype: Any) -> None:
    """float64 is kept as float32, which has every stored number."""
    model, here = t5g2ref.load(t5g2ref.bundled(name), dtype, backend=device), weights.load(t5g2ref.bundled(name), dtype)
    expected = dict(arrays(here[1]))
    found = dict(arrays(model.weights))
    assert list(found) == list(expected)
    for key, array in found.items():
        value = device.host(array)
        assert value.dtype == ("float32" if dtype == "float64" else STORED[dtype])
        same_bits(value.astype(expected[key].dtype), expected[key])


def test_stored_in_every_type(tmp_path: Path, device: Any) -> None:
    config, root = weights.load(t5g2ref.bundled("tiny"), "float32")
    for stored in TYPES:
        (tmp_path / stored).mkdir()
        flat = {name: x.astype(np.float64 if stored == "float64" else np.float32) for name, x in arrays(root)}
        weights.save(tmp_path / stored, config, flat.items(), dtype=stored)
        for dtype in TYPES:
            there = weights.load(tmp_path / stored, dtype, backend=device)[1]
            here = dict(arrays(weights.load(tmp_path / stored, dtype)[1]))
            for name, array in arrays(there):
                same_bits(device.host(array).astype(here[name].dtype), here[name])
                assert array.dtype == ("float32" if dtype == "float64" != stored else STORED[dtype])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wanted", TYPES)
@pytest.mark.parametrize("stored", TYPES)
def test_not_finite_is_refused(tmp_path: Path, device: Any, stored: str, wanted: str, bad: float) -> None:
    x = samples(stored, wanted)
    x[-1] = bad
    with pytest.raises(WeightsError, match=r"^model\.safetensors: x has NaN or Inf, expected finite weights"):
        store(tmp_path, x=x).read("x", wanted, device)


@pytest.mark.parametrize(
    ("stored", "wanted", "value"),
    [("float32", "float16", 65520.0), ("bfloat16", "float16", 1e6), ("float64", "float32", 1e39)],
)
def test_overflow_is_refused(tmp_path: Path, device: Any, stored: str, wanted: str, value: float) -> None:
    x = samples(stored, wanted)
    x[300] = value
    with pytest.raises(WeightsError, match=f"x has values beyond {wanted}'s range"):
        store(tmp_path, x=x).read("x", wanted, device)


# ---- memory -------------------------------------------------------------------------------------------------------


def test_a_memory_limit_stops_the_load(cupy: Any) -> None:
    from t5g2ref.backend.cuda import backend

    with pytest.raises(
        BackendError, match=r"not enough memory on cupy \(.*\) for the weights of .*: needed .* GiB, free"
    ):
        t5g2ref.load(t5g2ref.bundled("tiny"), backend=backend(memory_limit=1 << 16))


def test_a_memory_limit_stops_a_call(cupy: Any) -> None:
    from t5g2ref.backend.cuda import backend

    limited = backend(memory_limit=1 << 20)
    words = r"for an array: needed 0\.00391 GiB, free .* of 0\.000977 GiB\. Use a smaller"
    with pytest.raises(BackendError, match=words), limited.scope():
        cupy.empty(1 << 22, dtype=np.uint8)
    with limited.scope():
        assert int(cupy.ones(1000, dtype=np.int32).sum()) == 1000  # and it goes on
    with pytest.raises(BackendError, match="needed 1 GiB, free"):
        limited.require(1 << 30, "x")


def test_what_is_loaded_is_in_the_pool_and_little_else(tmp_path: Path, cupy: Any) -> None:
    backend = find("cupy")
    x = generator("pool").normal(size=3 * loading.PART).astype(STORED["bfloat16"])  # 96 MiB
    found = store(tmp_path, x=x).read("x", "bfloat16", backend)
    with backend.scope():
        assert found.nbytes <= backend.pool.used_bytes() <= found.nbytes + 4096
        assert backend.pool.total_bytes() <= found.nbytes + 8 * loading.PART


def test_the_report_names_the_device(device: Any) -> None:
    found = device.describe()
    assert list(found) == ["device", "driver", "runtime", "cupy", "numpy"]
    print(found)


# ---- scopes -------------------------------------------------------------------------------------------------------


def test_a_scope_gives_back_what_was_current(cupy: Any, device: Any) -> None:
    own = cupy.cuda.Stream(non_blocking=True)
    with own, cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):
        before = (cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr, cupy.cuda.get_allocator())
        with device.scope(), device.scope():
            assert cupy.cuda.get_current_stream().ptr == device.stream.ptr == 0
            assert cupy.cuda.get_allocator() == device.pool.malloc
        assert before == (cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr, cupy.cuda.get_allocator())


def test_two_threads_in_nested_scopes(cupy: Any, device: Any) -> None:
    """Each in its own backend's pool and in a shared one's, at the same time."""
    folder = t5g2ref.bundled("tiny")
    expected = t5g2ref.load(folder, "float32")([[5, 17, 42]], [[5, 8]]).logits
    meet, found, pools = threading.Barrier(2, timeout=120), {}, {}

    def work(index: int) -> None:
        mine = find("cupy")
        with device.scope(), mine.scope():
            meet.wait()
            for _ in range(5):
                model = t5g2ref.load(folder, "float32", backend=device)
                found[index] = device.host(model([[5, 17, 42]], [[5, 8]]).logits)
            kept = cupy.ones(1 << 20, dtype=np.uint8)
            pools[index] = (mine.pool.used_bytes(), kept.nbytes)
            meet.wait()
        with device.scope():
            assert cupy.cuda.get_allocator() == device.pool.malloc

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pools == {0: (1 << 20, 1 << 20), 1: (1 << 20, 1 << 20)}
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4)  # logits to 30; the judge has the fine measure


def test_a_scope_costs_microseconds(device: Any) -> None:
    begin = time.perf_counter()
    for _ in range(10_000):
        with device.scope():
            pass
    each = (time.perf_counter() - begin) / 10_000
    print(f"a scope costs {each * 1e6:.1f} µs")
    assert each < 50e-6  # a kernel's launch costs 10 to 20


def test_a_stream_of_its_own(cupy: Any, tmp_path: Path) -> None:
    """Copies and conversions keep the order of a stream that the default one does not wait for."""
    from t5g2ref.backend.cuda import backend

    made = backend(stream=cupy.cuda.Stream(non_blocking=True))
    x = generator("stream").normal(size=1 << 22).astype(np.float32)
    file = store(tmp_path, x=x)
    for wanted in ("float32", "bfloat16"):
        same_bits(made.host(file.read("x", wanted, made)), file.read("x", wanted))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_generation_on_the_device(device: Any, dtype: Any) -> None:
    folder, ids = t5g2ref.bundled("tiny"), [[33, 17, 42, 90]]
    found = device.host(greedy(t5g2ref.load(folder, dtype, backend=device), ids, max_new_tokens=8).ids)
    expected = greedy(t5g2ref.load(folder, dtype), ids, max_new_tokens=8).ids
    same = found.shape == expected.shape and (found == expected).all()
    assert same or dtype == "bfloat16", "float64 has no near ties here"
    assert found.min() >= 0
    assert found.shape[1] > 1


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_sampling_and_beams_on_the_device(device: Any, dtype: Any) -> None:
    """In float64 the same ids as on the host, drawn or searched, under every rule; half types run."""
    folder = t5g2ref.bundled("tiny")
    ids, mask = [[33, 17, 42, 90], [31, 31, 33, 8]], [[1, 1, 1, 1], [0, 0, 1, 1]]
    there, here = t5g2ref.load(folder, dtype, backend=device), t5g2ref.load(folder, dtype)
    how: Any = {"attention_mask": mask, "max_new_tokens": 12, "min_new_tokens": 3, "stop": (84, 70, 171)}
    how["rules"] = Rules(1.2, 3, ((5,), (44, 44)))
    for sampling in (Sampling(), Sampling(0.7, 40, 0.9, 0.01)):
        found, expected = (sample(model, ids, sampling, seed=3, **how) for model in (there, here))
        assert dtype == "bfloat16" or (device.host(found.ids) == expected.ids).all()
    best, wanted = (beam_search(model, ids, Search(3), **how) for model in (there, here))
    assert best.ids.shape[0] == 6
    assert dtype == "bfloat16" or (best.ids == wanted.ids).all()
    assert device.host(best.logits).shape[:2] == best.log_probs.shape
