"""The CUDA backend without CUDA, on a stand-in for CuPy: its scopes and its memory.

What only a device can show is in test_gpu_loading.py.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from elsewhere import samples, store
from fake_cupy import GIB, HERE, BlasError, CudaError, DriverError, OutOfMemory, Stream, now
from helpers import same_bits

import t5g2ref.backend.cuda
from t5g2ref.backend import BackendError


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
