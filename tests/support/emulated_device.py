"""A stand-in for CuPy whose `RawModule` runs its kernels on the CPU, one fiber a thread: see emulated.py."""

from __future__ import annotations

import ctypes
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
from emulated import as_c, library

KERNEL = re.compile(r'extern "C" __global__ void (\w+)')
DOUBLE = "static inline double __longlong_as_double(long long x) { double y; memcpy(&y, &x, 8); return y; }\n"


class Module:
    """`cupy.RawModule` of a source whose kernels are C functions."""

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        entries = "".join(
            f'extern "C" void run_{name}(const int* grid, int threads, void** values) '
            f"{{ emu::launch_with({name}, grid, threads, 0, values); }}\n"
            for name in KERNEL.findall(code)
        )
        self._library = library(f"{DOUBLE}{code}\n{entries}")

    def get_function(self, name: str) -> Any:
        run = getattr(self._library, f"run_{name}")

        def launch(grid: tuple[int, ...], block: tuple[int], args: tuple[Any, ...]) -> None:
            values = [as_c(x) for x in args]
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(x) for x in values))
            run((ctypes.c_int * 3)(*(*grid, 1, 1)[:3]), block[0], pointers)

        return launch


class Device(SimpleNamespace):
    """What is asked of CuPy where kernels are launched. New arrays hold NaN, as memory that nobody has written may."""

    RawModule = Module
    ascontiguousarray = staticmethod(np.ascontiguousarray)

    def __hash__(self) -> int:
        return id(self)

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: Any = float) -> Any:
        return np.full(shape, np.nan, dtype)


class _Here:
    """A device's context."""

    def __init__(self, index: int) -> None:
        assert index == 0

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


DEVICE = Device(cuda=SimpleNamespace(Device=_Here, runtime=SimpleNamespace(getDevice=lambda: 0)))
