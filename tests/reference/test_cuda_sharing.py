"""Memory of a device that processes share, on a stand-in for CuPy; on a card: tests/conformance/test_gpu_lent.py."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import numpy as np
import pytest
from shared_device import DeviceMemory, put_in

import t5g2ref.backend.cuda
from t5g2ref.backend import Backend, BackendError


@pytest.fixture
def memory(install: Any) -> DeviceMemory:
    return put_in(install())


@pytest.fixture
def device(memory: DeviceMemory) -> Backend:
    return t5g2ref.backend.cuda.backend(1)


def test_a_handle_is_of_whole_blocks_and_given_when_all_is_written(device: Backend, memory: DeviceMemory) -> None:
    """Broken by a small allocation, which CUDA lays beside others, and by a handle before the kernels have ended."""
    arena = device.arena(1000)
    assert arena.bytes.shape == (2 << 20,)
    index, size, handle = pickle.loads(pickle.dumps(arena.key()))
    assert (index, size) == (1, 2 << 20)
    assert isinstance(handle, bytes)
    assert memory.did == ["release", "malloc", "synchronize", "handle"]


def test_what_is_opened_is_closed_once_when_its_last_array_goes(device: Backend, memory: DeviceMemory) -> None:
    arena = device.arena(5 << 20)
    arena.bytes[:8] = np.arange(8, dtype=np.uint8)
    there = device.opened(arena.key())
    assert there.shape == (6 << 20,)
    view = there[4:8].view(np.uint8).reshape(2, 2)
    del there
    gc.collect()
    assert view.tolist() == [[4, 5], [6, 7]]
    assert "close" not in memory.did
    del view
    gc.collect()
    assert memory.did[-2:] == ["wait", "close"]
    assert memory.did.count("close") == 1


def test_what_cuda_refuses_to_close_raises_nothing(device: Backend, memory: DeviceMemory) -> None:
    there = device.opened(device.arena(1).key())
    memory.broken.add("close")
    del there
    gc.collect()
    assert memory.did[-1] == "wait"


def test_another_device_is_refused(device: Backend, memory: DeviceMemory) -> None:
    key = device.arena(1).key()
    with pytest.raises(BackendError, match="memory of device 1 is opened on device 0"):
        t5g2ref.backend.cuda.backend(0).opened(key)
    assert "open" not in memory.did


def test_what_cuda_refuses_is_said(device: Backend, memory: DeviceMemory) -> None:
    arena = device.arena(1)
    memory.broken.add("handle")
    with pytest.raises(BackendError, match=r"CUDA gives no handle of memory .*: cudaErrorInvalidValue: handle"):
        arena.key()
    memory.broken = {"open"}
    with pytest.raises(BackendError, match="CUDA does not open another process's memory: cudaErrorInvalidValue: open"):
        device.opened(arena.key())


def test_without_room_there_is_no_arena(device: Backend, memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    def full(size: int) -> Any:
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")

    monkeypatch.setattr(cupy.cuda, "Memory", full)
    with pytest.raises(BackendError, match="not enough memory on cupy:1"):
        device.arena(1)


def test_a_closed_arena_keeps_nothing(device: Backend) -> None:
    arena = device.arena(1)
    arena.close()
    assert arena.bytes is None
