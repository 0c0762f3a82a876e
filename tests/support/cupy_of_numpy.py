"""CuPy with NumPy's arrays: what the twins of `cupy-fast` tell their kernels, without a card."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import Array

import t5g2ref.backend.cuda

FILES = ("blas", "kernels", "fused", "flash", "fast")


class Memory(np.ndarray[Any, Any]):
    """An array that knows its address as CuPy's do."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)


def installed(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Any, Any, Any]:
    """A list that takes names, with "product" for each product; and the modules fused, flash and fast on that CuPy."""
    cupy: Any = ModuleType("cupy")
    cupy.ndarray = lambda shape, dtype=float: np.full(shape, np.nan, dtype).view(Memory)
    cupy.ascontiguousarray = lambda x: np.ascontiguousarray(x).view(Memory)
    device = SimpleNamespace(compute_capability="90")
    counts = {"multiProcessorCount": 4, "sharedMemPerBlockOptin": 227 << 10}
    runtime = SimpleNamespace(getDevice=lambda: 0, getDeviceProperties=lambda index: counts)
    cupy.cuda = SimpleNamespace(runtime=runtime, Device=lambda index: device)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    blas: Any = ModuleType("t5g2ref.backend.cuda.blas")
    names: list[str] = []

    def product(a: Array, b: Array, dtype: Any) -> Array:
        names.append("product")
        return (a @ b).astype(dtype).view(Memory)

    blas.product = product
    for name in FILES:  # imported anew, and forgotten afterwards
        monkeypatch.setattr(t5g2ref.backend.cuda, name, None, raising=False)
        monkeypatch.setitem(sys.modules, f"t5g2ref.backend.cuda.{name}", None)
        del sys.modules[f"t5g2ref.backend.cuda.{name}"]
    monkeypatch.setattr(t5g2ref.backend.cuda, "blas", blas)
    monkeypatch.setitem(sys.modules, "t5g2ref.backend.cuda.blas", blas)
    fused, flash, fast = (importlib.import_module(f"t5g2ref.backend.cuda.{n}") for n in ("fused", "flash", "fast"))
    return names, fused, flash, fast
