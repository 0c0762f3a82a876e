"""The CUDA backend without CUDA: its errors, scopes and memory on a stand-in for CuPy, its loading on NumPy.

What only a device can show is in test_gpu_loading.py.
"""

from __future__ import annotations

import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import Array, generator, same_bits

import t5g2ref
import t5g2ref.backend.cuda
from t5g2ref import backend as backends
from t5g2ref import command_line as command
from t5g2ref.backend import Backend, BackendError
from t5g2ref.backend.cuda import loading
from t5g2ref.backend.interface import Source
from t5g2ref.checkpoint import folder as weights
from t5g2ref.checkpoint.file import SafetensorsFile, encode_header
from t5g2ref.checkpoint.folder import WeightsError
from t5g2ref.checkpoint.tensor import STORED
from t5g2ref.generate.greedy import greedy
from t5g2ref.weights import arrays

GIB = 1 << 30
HERE = threading.local()  # what is current in a thread: device, stream, allocator


# ---- a stand-in for CuPy ------------------------------------------------------------------------------------------


class CudaError(RuntimeError):
    """As CuPy's: the message begins with the error's name."""


class BlasError(RuntimeError):
    """As CuPy's: the message is the status's name."""


class DriverError(RuntimeError):
    """As CuPy's: the message begins with the error's name."""


class CompileException(Exception):
    """As CuPy's: no RuntimeError, and its text is all that the compiler said."""


class DynamicLibNotFoundError(RuntimeError):
    """As cuda.pathfinder's."""


class OutOfMemory(MemoryError):
    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        self._size = size
        super().__init__(f"Out of memory allocating {size:,} bytes")


@contextmanager
def current(what: str, value: Any) -> Iterator[None]:
    before = getattr(HERE, what, None)
    setattr(HERE, what, value)
    try:
        yield
    finally:
        setattr(HERE, what, before)


class Reentrant:
    """A context manager that may be entered again while it is entered, in any thread, as CuPy's are."""

    what = ""

    def value(self) -> Any:
        return self

    def __enter__(self) -> Any:
        stack = HERE.__dict__.setdefault("entered", [])
        stack.append(current(self.what, self.value()))
        stack[-1].__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        HERE.entered.pop().__exit__(None, None, None)


class Device(Reentrant):
    what, compute_capability = "device", "70"

    def __init__(self, index: int) -> None:
        self.index = index

    def value(self) -> int:
        return self.index


class Stream(Reentrant):
    what = "stream"

    def __init__(self, device: int) -> None:
        self.device_id = device

    def __enter__(self) -> Any:
        assert self.device_id in (-1, HERE.device), "CuPy refuses a stream of another device"
        return super().__enter__()


class Pool:
    """Of one device: 1 GiB in use and 2 GiB freed."""

    limit = 0

    def malloc(self, size: int) -> Any:
        raise OutOfMemory(size, 1 * GIB)

    def set_limit(self, size: int) -> None:
        self.limit, self.limited = size, HERE.device

    def get_limit(self) -> int:
        return self.limit

    def used_bytes(self) -> int:
        return 1 * GIB

    def free_bytes(self) -> int:
        return 2 * GIB


def raising(error: str | Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise CudaError(error) if isinstance(error, str) else error

    return call


class Cuda(SimpleNamespace):
    """`cupy.cuda`, which loads cuBLAS when somebody first asks for it."""

    @property
    def cublas(self) -> Any:
        return self.load_cublas()


def stand_in(
    count: int = 2,
    failing: str = "",
    driver: int = 13010,
    starts: str = "",
    release: str = "14.2.0",
    without: tuple[str, Exception] | None = None,
) -> Any:
    """A module that has what the backend takes from CuPy. `failing` is the error of getDeviceCount, `starts` that of
    a device's first call, `without` what does not work ("cublas", "nvrtc", "ones", "create") and its error; 4 of 8 GiB
    are free."""
    cupy: Any = ModuleType("cupy")
    cupy.__version__ = release
    cupy.empty, cupy.zeros, cupy.ones = np.empty, np.zeros, np.ones
    handles: list[int] = []
    cublas = SimpleNamespace(
        CUBLASError=BlasError,
        create=lambda: (handles.append(HERE.device), HERE.device)[1],
        destroy=handles.remove,
        handles=handles,
    )
    cupy.asnumpy = lambda x: (np.asarray(x), HERE.device)[0]
    runtime = SimpleNamespace(
        CUDARuntimeError=CudaError,
        getDeviceCount=raising(failing) if failing else lambda: count,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 13020,
        memGetInfo=raising(starts) if starts else lambda: (4 * GIB, 8 * GIB),
        getDeviceProperties=lambda index: {"name": f"Card {index}".encode()},
    )
    default = Stream(-1)
    cupy.cuda = Cuda(
        runtime=runtime,
        driver=SimpleNamespace(CUDADriverError=DriverError),
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 1)),
        load_cublas=lambda: cublas,
        Device=Device,
        Stream=SimpleNamespace(null=default),
        MemoryPool=Pool,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemory),
        using_allocator=partial(current, "allocator"),
        alloc_pinned_memory=raising("cudaErrorMemoryAllocation: out of memory"),
    )
    if without is not None:
        what, error = without
        owner, name = {
            "cublas": (cupy.cuda, "load_cublas"),
            "nvrtc": (cupy.cuda.nvrtc, "getVersion"),
            "ones": (cupy, "ones"),
            "create": (cublas, "create"),
        }[what]
        setattr(owner, name, raising(error))
    return cupy


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Puts a stand-in where CuPy would be, and behind the test all as it was."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(**facts: Any) -> Any:
        cupy = stand_in(**facts)
        fused: Any = SimpleNamespace(TWINS={"rms_norm": print})
        parts = {"blas": SimpleNamespace(), "fused": fused, "device": None}
        for name, part in parts.items():  # the real ones take from CuPy what the stand-in has not
            monkeypatch.setitem(sys.modules, f"t5g2ref.backend.cuda.{name}", part)
            monkeypatch.setattr(t5g2ref.backend.cuda, name, part, raising=False)
        del sys.modules["t5g2ref.backend.cuda.device"]  # so that it is imported anew, and forgotten afterwards
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        return cupy

    return put


# ---- errors in plain words ----------------------------------------------------------------------------------------


def refused(index: int = 0, **arguments: Any) -> str:
    with pytest.raises(BackendError) as error:
        t5g2ref.backend.cuda.backend(index, **arguments)
    return str(error.value)


INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
NO_DEVICE = "cudaErrorNoDevice: no CUDA-capable device is detected"
ERRORS: list[tuple[dict[str, Any], list[str]]] = [
    ({"release": "13.6.0"}, ["CuPy 13.6.0 is too old, expected 14 or later", 'pip install "t5g2ref[cuda13]" where']),
    ({"failing": INSUFFICIENT, "driver": 0}, ["there is no NVIDIA driver: install", "--gpus all", "backend numpy"]),
    (
        {"failing": INSUFFICIENT, "driver": 12040},
        ["driver is for CUDA 12.4, CuPy was built for 13.2: update the driver, or", '"t5g2ref[cuda12]" in place of'],
    ),
    ({"failing": INSUFFICIENT, "driver": 11080}, ["driver is for CUDA 11.8, CuPy was built for 13.2: update the"]),
    ({"failing": NO_DEVICE}, ["there is no CUDA device: see whether nvidia-smi lists a card"]),
    ({"count": 0}, ["there is no CUDA device: see whether nvidia-smi lists a card"]),
    ({"failing": "cudaErrorUnknown: unknown error"}, ["CUDA does not start: cudaErrorUnknown: unknown error; see"]),
    (
        {"starts": "cudaErrorDevicesUnavailable: busy"},
        ["CUDA device 0 does not start: cudaErrorDevicesUnavailable: busy; see who uses it with nvidia-smi"],
    ),
]


@pytest.mark.parametrize(("facts", "words"), ERRORS, ids=lambda item: str(item)[:40])
def test_what_is_missing_is_said(install: Any, facts: dict[str, Any], words: list[str]) -> None:
    install(**facts)
    message = refused()
    assert all(word in message for word in words), message
    assert "hides" not in message  # CUDA_VISIBLE_DEVICES is not set


MISSING = 'Failure finding "libcublasLt.so.13 or libcublasLt.so.12": No such file: libcublasLt.so.13, No such file'


@pytest.mark.parametrize("what", ["cublas", "nvrtc"])
@pytest.mark.parametrize("kind", [ImportError, OSError, DynamicLibNotFoundError, RuntimeError])
def test_cuda_libraries_that_are_missing(install: Any, kind: type[Exception], what: str) -> None:
    """CuPy's wheels alone have neither, and it imports all the same."""
    install(without=(what, kind(f"\n{MISSING}\n\n")))
    assert refused() == (
        f"CuPy does not find CUDA's libraries, cuBLAS and the compiler NVRTC: {kind.__name__}: {MISSING}. They do not "
        'come with CuPy alone: pip install "cupy-cuda13x[ctk]", or "cupy-cuda12x[ctk]" where that is the CuPy that '
        "`pip list` shows; or install the CUDA toolkit of that version"
    )


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("ones", CompileException("nvrtc: error: invalid value for --gpu-architecture (-arch)\n\n"), "(-arch). CUDA"),
        ("ones", CompileException("a.cuh(5): catastrophic error: no cuda_fp16.h\n" + 1000 * "x\n"), "fp16.h. CUDA 13"),
        (
            "ones",
            CudaError("cudaErrorNoKernelImageForDevice: no image"),
            ": CudaError: cudaErrorNoKernelImageForDevice",
        ),
        ("create", BlasError("CUBLAS_STATUS_ARCH_MISMATCH"), "BlasError: CUBLAS_STATUS_ARCH_MISMATCH. CUDA 13"),
        ("create", BlasError("CUBLAS_STATUS_NOT_INITIALIZED"), "BlasError: CUBLAS_STATUS_NOT_INITIALIZED. CUDA 13"),
        ("create", RuntimeError(), "has: RuntimeError. CUDA 13"),
    ],
    ids=str,
)
def test_a_card_that_this_cupy_cannot_use(install: Any, what: str, error: Exception, said: str) -> None:
    install(without=(what, error))
    message = refused(1)
    assert message.startswith(
        "CuPy 14.2.0 for CUDA 13.2 cannot compile or run for compute capability 7.0, which CUDA device 1 has: "
    )
    assert said in message
    assert (
        'CUDA 13 knows 7.5 and later; for an older card uninstall CuPy, then pip install "t5g2ref[cuda12]"' in message
    )
    assert len(message) < 1000  # not all that a compiler has to say


@pytest.mark.parametrize(
    ("what", "error"), [("ones", OutOfMemory(512, GIB)), ("create", BlasError("CUBLAS_STATUS_ALLOC_FAILED"))], ids=str
)
def test_a_card_that_is_full(install: Any, what: str, error: Exception) -> None:
    install(without=(what, error))
    message = refused()
    assert message.startswith("CUDA device 0 has no memory left in which CUDA's libraries could start: ")
    assert message.endswith("; close what else holds it (nvidia-smi lists it)")


def test_the_trial_leaves_nothing(install: Any) -> None:
    cupy = install()
    t5g2ref.backend.cuda.backend(1)
    assert not cupy.cuda.cublas.handles
    assert now() == (None, None, None)


@pytest.mark.parametrize("facts", [{"failing": NO_DEVICE}, {"count": 0}])
def test_hidden_cards_are_hinted_at(install: Any, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]) -> None:
    install(**facts)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "(CUDA_VISIBLE_DEVICES is '-1' and hides every card" in refused()


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    message = refused()
    assert message.startswith('CuPy is not installed: pip install "t5g2ref[cuda13]" where `nvidia-smi` prints CUDA')
    assert '"t5g2ref[cuda12]" where it prints 12' in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise ImportError('libcudart.so.13: cannot open')", "libcudart.so.13: cannot open"),
        ("import no_such_part_of_cupy", "No module named 'no_such_part_of_cupy'"),
        ("raise OSError('libcuda.so.1: wrong ELF class')", "wrong ELF class"),
    ],
)
def test_a_broken_cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "cupy.py").write_text(line)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    message = refused()
    assert message.startswith("CuPy is installed but does not import: ")
    assert said in message
    assert "uninstall every cupy package" in message


def test_a_numpy_without_bfloat16_in_cupy(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setattr(np, "__version__", "2.0.2")
    assert (
        'found NumPy 2.0.2, with which CuPy has no bfloat16; expected 2.1.2 or later: pip install "numpy' in refused()
    )


@pytest.mark.parametrize(
    ("count", "index", "words"),
    [
        (2, 2, "there is no CUDA device 2: devices 0 to 1 are there"),
        (1, 1, "there is no CUDA device 1: device 0 alone is there"),
        (1, -1, "there is no CUDA device -1: device 0 alone is there"),
    ],
)
def test_indices(install: Any, monkeypatch: pytest.MonkeyPatch, count: int, index: int, words: str) -> None:
    install(count=count)
    assert refused(index) == words
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert refused(index).startswith(f"{words} (CUDA_VISIBLE_DEVICES is '3'")


def test_arguments(install: Any) -> None:
    install()
    assert "memory_limit is 0, expected a positive number of bytes" in refused(memory_limit=0)
    assert "the stream belongs to device 1, expected one of device 0" in refused(stream=Stream(1))


def test_names(install: Any) -> None:
    install()
    first, second = backends.find("cupy"), backends.find("cupy:1")
    assert (first.name, second.name) == ("cupy", "cupy:1")
    assert (first.index, second.index) == (0, 1)  # type: ignore[attr-defined]
    assert first.native_half
    assert first.block_rows == 1024
    assert list(first.twins) == ["rms_norm"]
    assert second.describe() == {
        "device": "cupy:1, Card 1",
        "driver": "CUDA 13.1",
        "runtime": "CUDA 13.2",
        "cupy": "14.2.0",
        "numpy": np.__version__,
    }
    assert Backend().describe() == {"numpy": np.__version__}


# ---- scopes and memory --------------------------------------------------------------------------------------------


def now() -> tuple[Any, Any, Any]:
    return tuple(getattr(HERE, what, None) for what in ("device", "stream", "allocator"))  # type: ignore[return-value]


def test_scopes_nest_and_give_back(install: Any) -> None:
    install()
    first, second = t5g2ref.backend.cuda.backend(0), t5g2ref.backend.cuda.backend(1, stream=Stream(1))
    inside = [(b.index, b.stream, b.pool.malloc) for b in (first, second)]
    outside = now()
    with first.scope() as given:
        assert given is first
        with first.scope():
            assert now() == inside[0]
            with second.scope(), second.scope():
                assert now() == inside[1]
            assert now() == inside[0]
        assert now() == inside[0]
        with pytest.raises(KeyError), second.scope():
            raise KeyError
        assert now() == inside[0]
    assert now() == outside


def test_a_scope_is_the_threads_own(install: Any) -> None:
    install()
    made = [t5g2ref.backend.cuda.backend(0), t5g2ref.backend.cuda.backend(1)]
    meet, seen = threading.Barrier(2, timeout=60), {}

    def work(index: int) -> None:
        with made[index].scope(), made[index].scope():
            meet.wait()
            seen[index] = HERE.device
            meet.wait()  # neither leaves before both have looked
        seen[index + 2] = getattr(HERE, "device", None)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {0: 0, 1: 1, 2: None, 3: None}


def test_out_of_memory_says_what_to_do(install: Any) -> None:
    install()
    made = t5g2ref.backend.cuda.backend(1)
    with pytest.raises(BackendError) as error, made.scope(), made.scope():
        HERE.allocator(5 * GIB)
    assert str(error.value).startswith(
        "not enough memory on cupy:1 (Card 1) for an array: needed 5 GiB, free 6 GiB of 8 GiB. Use a smaller dtype, "
        "fewer rows or tokens at a time, another device"
    )
    assert isinstance(error.value.__cause__, OutOfMemory)
    assert now() == (None, None, None)


@pytest.mark.parametrize(
    "error",
    [
        BlasError("CUBLAS_STATUS_ALLOC_FAILED"),
        BlasError("CUBLAS_STATUS_NOT_INITIALIZED"),  # as cuBLAS says it where a handle finds no room
        CudaError("cudaErrorMemoryAllocation: out of memory"),
        DriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    ],
    ids=str,
)
def test_a_library_without_memory_for_itself(install: Any, error: Exception) -> None:
    install()
    made = t5g2ref.backend.cuda.backend()
    with pytest.raises(BackendError) as found, made.scope(), made.scope():
        raise error
    assert str(found.value).startswith(
        f"not enough memory on cupy (Card 0) for a CUDA library itself: {error}, free 6 GiB of 8 GiB. Use a smaller"
    )
    assert found.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        BlasError("CUBLAS_STATUS_EXECUTION_FAILED"),
        CudaError("cudaErrorIllegalAddress: an illegal memory access was encountered"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED, says somebody else"),
    ],
    ids=str,
)
def test_other_errors_stay_what_they_are(install: Any, error: Exception) -> None:
    install()
    with pytest.raises(type(error)) as found, t5g2ref.backend.cuda.backend().scope():
        raise error
    assert found.value is error


def test_room_counts_what_the_pool_can_use_again(install: Any) -> None:
    install()
    made = t5g2ref.backend.cuda.backend()
    assert made.memory() == (6 * GIB, 8 * GIB)
    made.require(11 * GIB // 2, "the weights of x")
    words = r"for the weights of x: needed 5\.5 GiB and 0\.5 GiB for CUDA's libraries, free 6 GiB of 8 GiB\. Use"
    with pytest.raises(BackendError, match=words):
        made.require(11 * GIB // 2 + 1, "the weights of x")
    with pytest.raises(BackendError, match=r"for the weights of x: needed 6 GiB, free 6 GiB of 8 GiB\. Use"):
        made.require(6 * GIB + 1, "the weights of x")


def test_a_memory_limit_is_the_devices_own(install: Any) -> None:
    install()
    made = t5g2ref.backend.cuda.backend(1, memory_limit=3 * GIB)
    assert (made.pool.limit, made.pool.limited) == (3 * GIB, 1)
    assert made.memory() == (2 * GIB, 3 * GIB)  # 1 GiB is in use
    with pytest.raises(BackendError, match=r"needed 2\.5 GiB, free 2 GiB of 3 GiB.* or a higher memory_limit"):
        made.require(5 * GIB // 2, "x")
    made.require(2 * GIB, "x")  # the libraries' own memory is not the pool's
    assert t5g2ref.backend.cuda.backend(memory_limit=100 * GIB).memory() == (6 * GIB, 8 * GIB)
    assert t5g2ref.backend.cuda.backend(memory_limit=1).memory() == (0, 1)


def test_what_comes_back_is_copied_in_scope(install: Any) -> None:
    install()
    same_bits(t5g2ref.backend.cuda.backend(1).host([1.0, 2.0]), np.array([1.0, 2.0]))  # asnumpy asks for the device


def test_no_pinned_memory(install: Any, tmp_path: Path) -> None:
    install()
    file = store(tmp_path, x=samples("float32", "float32"))
    with pytest.raises(BackendError, match=r"0\.0156 GiB of page-locked host memory .* cudaErrorMemoryAllocation"):
        file.read("x", "float32", t5g2ref.backend.cuda.backend())


class Pointer(np.ndarray):  # type: ignore[type-arg]
    """Memory that knows its address and gives its buffer, as CuPy's PinnedMemoryPointer does."""

    ptr = property(lambda self: self.ctypes.data)


def test_a_pinned_buffer_sends_and_waits_in_order(install: Any) -> None:
    cupy, calls = install(), []
    memory = np.zeros(64, np.uint8).view(Pointer)
    cupy.cuda.alloc_pinned_memory = lambda size: memory[:size]
    cupy.cuda.Event = lambda disable_timing: SimpleNamespace(
        record=lambda stream: calls.append(("record", stream)), synchronize=lambda: calls.append(("synchronize",))
    )
    t5g2ref.backend.cuda.backend()  # imports the module that has it
    buffer = sys.modules["t5g2ref.backend.cuda.device"].Pinned(64, "a stream")
    buffer.host[:3] = 5
    assert memory[:4].tolist() == [5, 5, 5, 0]  # no copy between what is read from the file and what is sent
    data = SimpleNamespace(copy_from_host_async=lambda *arguments: calls.append(("copy", *arguments)))
    buffer.send(SimpleNamespace(nbytes=48, data=data))
    buffer.wait()
    assert calls == [("copy", memory.ptr, 48, "a stream"), ("record", "a stream"), ("synchronize",)]


# ---- loading, with NumPy in place of the device -------------------------------------------------------------------

TYPES = ("float64", "float32", "float16", "bfloat16")


class Ordinary:
    """A buffer whose copy to the "device" is late: made when the next one is sent or the host waits, and the host
    memory is spoilt then. A loader that does not wait, or writes before it has waited, loses its data."""

    def __init__(self, size: int, sent: Callable[[Array], None]) -> None:
        self.host = np.full(size, 0xFF, np.uint8)
        self.waited, self._sent = False, sent

    def send(self, to: Array) -> None:
        assert self.waited, "sent again without a wait"
        self.waited = False
        to.view(np.uint8)[...] = self.host[: to.nbytes]
        self._sent(to)

    def wait(self) -> None:
        self.waited = True
        self.host[...] = 0xFF


class Elsewhere(Backend):
    """NumPy behind the loader of the CUDA backend, with its rule for float64."""

    name = "elsewhere"

    def __init__(self, sent: Callable[[Array], None] = lambda to: None) -> None:
        self.buffers: list[Ordinary] = []
        self.asked: list[tuple[int, str]] = []
        self.depth = 0
        self._sent, self._loader = sent, loading.Loader(np, self._buffer)

    def _buffer(self, size: int) -> Ordinary:
        self.buffers.append(Ordinary(size, self._sent))
        return self.buffers[-1]

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def load(self, source: Source, dtype: str) -> Array:
        with np.errstate(all="ignore"):  # a device does not warn
            out: Array = self._loader.load(source, dtype)
        return out

    def kept(self, stored: str, dtype: str) -> str:
        return "float32" if dtype == "float64" and stored != "float64" else dtype

    def require(self, bytes_needed: int, what: str) -> None:
        assert not self.buffers, "asked after something was read"
        self.asked.append((bytes_needed, what))


def samples(stored: str, wanted: str) -> Array:
    """Numbers of one type that stay finite in another: both zeros, the least and the largest, subnormal numbers of
    each type, ties and their neighbours, and random ones."""
    least = [2.0**-24, 3 * 2.0**-26, 2.0**-133, 2.0**-149, 5 * 2.0**-136, 3 * 2.0**-150, 2.0**-1074]
    near = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-40, 1 - 2.0**-26]
    largest = [2.0**15, 65504.0, 65519.0, 1e38, 1e300]
    rng = generator(f"{stored} to {wanted}")
    mixed = rng.normal(size=500) * 2.0 ** rng.integers(-30, 12, 500)
    values = np.array([0.0, *least, *near, *largest, *mixed])
    with np.errstate(over="ignore", under="ignore"):
        x = np.concatenate([values, -values]).astype(STORED[stored])
        wide = x.astype(np.float64)
        kept = np.isfinite(wide) & np.isfinite(wide.astype(np.float32).astype(STORED[wanted]).astype(np.float64))
    return np.asarray(x[kept])


def store(folder: Path, **tensors: Array) -> SafetensorsFile:
    """A file of these tensors, each stored in its own dtype."""
    header, _ = encode_header({name: (x.dtype, x.shape) for name, x in tensors.items()})
    path = folder / "model.safetensors"
    path.write_bytes(header + b"".join(x.tobytes() for x in tensors.values()))
    return SafetensorsFile.open(path)


def equal(found: Any, expected: Array) -> None:
    """same_bits, and empty arrays too."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if expected.size:
        same_bits(found, expected)


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
    monkeypatch.setattr(command, "find", {"cupy:1": elsewhere}.__getitem__)
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
