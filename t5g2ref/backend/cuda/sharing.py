"""Memory of a device that several processes see, by CUDA's handles for it; called inside the backend's scope."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import cupy
import numpy as np

from t5g2ref.backend.interface import Array, BackendError

BLOCK = 2 << 20  # bytes: CUDA lays smaller allocations beside others, and a handle would show these too
Key = tuple[int, int, bytes]
"""A device's index, the size in bytes, and CUDA's handle."""


class DeviceArena:
    """See `interface.Arena`: an allocation of its own, since a handle is that of a whole one."""

    def __init__(self, size: int, index: int, stream: Any) -> None:
        self._size = max(1, -(-size // BLOCK)) * BLOCK
        self._index, self._stream = index, stream
        self._memory = cupy.cuda.Memory(self._size)
        self.bytes = _array(self._memory, self._size)

    def key(self) -> Key:
        try:
            with cupy.cuda.Device(self._index):
                self._stream.synchronize()
                return self._index, self._size, cupy.cuda.runtime.ipcGetMemHandle(self._memory.ptr)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendError(f"CUDA gives no handle of memory that processes share: {error}") from error

    def close(self) -> None:
        self.bytes = self._memory = None


def opened(key: Key, index: int) -> Array:
    """The bytes, which CuPy cannot make read-only. They are closed when the last array in them goes."""
    device, size, handle = key
    if device != index:
        raise BackendError(f"memory of device {device} is opened on device {index}, expected the same")
    try:
        pointer = cupy.cuda.runtime.ipcOpenMemHandle(handle)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(f"CUDA does not open another process's memory: {error}") from error
    return _array(cupy.cuda.UnownedMemory(pointer, size, _Opened(pointer, index), index), size)


class _Opened:
    """Who has it open; what is open when the process ends, CUDA closes."""

    def __init__(self, pointer: int, index: int) -> None:
        weakref.finalize(self, _close, pointer, index).atexit = False


def _close(pointer: int, index: int) -> None:
    runtime = cupy.cuda.runtime
    with suppress(runtime.CUDARuntimeError), cupy.cuda.Device(index):
        runtime.deviceSynchronize()  # for kernels that still read it
        runtime.ipcCloseMemHandle(pointer)


def _array(memory: Any, size: int) -> Array:
    return cupy.ndarray((size,), np.uint8, cupy.cuda.MemoryPointer(memory, 0))
