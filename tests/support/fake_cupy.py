"""A stand-in for CuPy that knows devices, streams, pools and errors, and computes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

GIB = 1 << 30
HERE = threading.local()  # what is current in a thread: device, stream, allocator


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


def now() -> tuple[Any, Any, Any]:
    return tuple(getattr(HERE, what, None) for what in ("device", "stream", "allocator"))  # type: ignore[return-value]
