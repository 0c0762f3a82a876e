"""Where arrays lie, on the host or on a device, and the ways between: all that the suite knows of device libraries.

Such a library is never imported here: it comes as a backend's `xp`, or with the arrays that a peer shows.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from t5g2ref.backend import Backend, find

Array = Any
_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files that say how much a container may have, and how much it has."""


def has_device(backend: Backend) -> bool:
    """Whether the backend's arrays lie on a device."""
    return hasattr(backend.xp, "cuda")


def has_kernels(xp: Any) -> bool:
    """Whether the array library compiles kernels."""
    return hasattr(xp, "RawModule")


@cache
def kernels(xp: Any, device: int, package: str, name: str, constants: str = "") -> Any:
    """The kernels of a package's file, behind a line of constants, compiled once for a device."""
    code = files(package).joinpath(name).read_text(encoding="utf-8")
    with xp.cuda.Device(device):
        return xp.RawModule(code=constants + code, options=("--std=c++17",))


def on_device(value: Array) -> bool:
    """Whether the array lies on a device, whatever library made it."""
    return hasattr(value, "__cuda_array_interface__")


def device_index(backend: Backend) -> int:
    """The number of a device backend's device."""
    with backend.scope():
        return int(backend.xp.cuda.runtime.getDevice())


def free_bytes(backend: Backend) -> int:
    """What is free on a device backend's device; else what a process may take here without swapping."""
    if not has_device(backend):
        return _free_memory()
    with backend.scope():
        return int(backend.xp.cuda.runtime.memGetInfo()[0])


def _free_memory() -> int:
    """Of the machine, or of the container that this runs in where that is less."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, used in _CONTAINER:
        with suppress(OSError, ValueError):  # "max" is no number
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, free)


def release(backend: Backend) -> None:
    """Give back what a device library keeps of freed memory, so that another one finds room."""
    pool = getattr(backend, "pool", None)
    if pool is not None:
        with backend.scope():
            pool.free_all_blocks()


def to_host(value: Array) -> np.ndarray[Any, Any]:
    """A device array's copy on the host: in CuPy's own way, or by CuPy for other libraries' arrays."""
    if hasattr(value, "get"):
        return np.asarray(value.get())
    device = find("cupy")
    with device.scope():
        return device.host(device.xp.asarray(value))


def to_backend(value: Array, backend: Backend) -> Array:
    """Any array as one of the backend's, same dtype; the array itself where it is one already."""
    if not has_device(backend):
        return to_host(value) if on_device(value) else value
    with backend.scope():
        if on_device(value):  # a view, unless it lies on another device
            return backend.xp.asarray(value)
        return backend.xp.asarray(words(np.asarray(value))).view(value.dtype)


def words(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """bfloat16 as 16-bit words, which every library and file format knows; other arrays as they are."""
    return value.view(np.uint16) if value.dtype.kind == "V" else value


def same_bits(a: Array, b: Array, backend: Backend) -> bool:
    """Whether two of the backend's arrays have one type, one shape and the same bits; a NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    with backend.scope():
        words = f"u{a.dtype.itemsize}"
        return bool((a.view(words) == b.view(words)).all())
