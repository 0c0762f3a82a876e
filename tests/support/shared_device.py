"""A device's memory that processes share, on the stand-in for CuPy: buffers by address, and handles of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_cupy import HERE, CudaError


class DeviceMemory:
    """What `put_in` gave a stand-in.

    Attributes:
        there: address → bytes; an address that is opened is another one of the same bytes.
        did: what was asked of CUDA, in order: names of functions.
        broken: what CUDA refuses, by name.
    """

    def __init__(self) -> None:
        self.there: dict[int, np.ndarray[Any, Any]] = {}
        self.did: list[str] = []
        self.broken: set[str] = set()

    def add(self, there: np.ndarray[Any, Any]) -> int:
        self.there[at := 1000 + len(self.did) + len(self.there)] = there
        return at

    def asked(self, name: str) -> None:
        assert HERE.device is not None, "outside of a device's scope"
        if name in self.broken:
            raise CudaError(f"cudaErrorInvalidValue: {name}")
        self.did.append(name)


def put_in(cupy: Any) -> DeviceMemory:
    """Memory, pointers, arrays in them and the functions of `cudaIpc`, for a stand-in."""
    made, runtime = DeviceMemory(), cupy.cuda.runtime

    def memory(size: int) -> Any:
        made.asked("malloc")
        return SimpleNamespace(ptr=made.add(np.full(size, 255, np.uint8)), size=size)

    def array(shape: tuple[int, ...], dtype: Any, pointer: Any) -> Any:
        found = made.there[pointer.mem.ptr][: shape[0]].view(Owning)
        found.owner = pointer.mem
        return found

    def handle(pointer: int) -> bytes:
        made.asked("handle")
        return str(pointer).encode()

    def opened(handle: bytes, flags: int = 1) -> int:
        made.asked("open")
        return made.add(made.there[int(handle)])

    def closed(pointer: int) -> None:
        made.asked("close")
        del made.there[pointer]

    runtime.ipcGetMemHandle, runtime.ipcOpenMemHandle, runtime.ipcCloseMemHandle = handle, opened, closed
    runtime.deviceSynchronize = lambda: made.asked("wait")
    cupy.cuda.Memory = memory
    cupy.cuda.UnownedMemory = lambda ptr, size, owner, device: SimpleNamespace(ptr=ptr, size=size, owner=owner)
    cupy.cuda.MemoryPointer = lambda mem, offset: SimpleNamespace(mem=mem, offset=offset)
    cupy.cuda.Stream.null.synchronize = lambda: made.asked("synchronize")
    cupy.cuda.MemoryPool.free_all_blocks = lambda self: made.did.append("release")
    cupy.ndarray = array
    return made


class Owning(np.ndarray[Any, Any]):
    """An array whose views keep its memory, as CuPy's do."""

    owner: Any = None

    def __array_finalize__(self, other: Any) -> None:
        self.owner = getattr(other, "owner", None)
