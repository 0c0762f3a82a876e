"""A device that every machine has: `strict_arrays.py` behind what the suite asks of CuPy beyond the model's needs.

Its arrays say that they lie on a device, come down by `get`, and are reduced by kernels written in C's expressions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from strict_arrays import Strict, StrictArray, StrictBackend, unwrapped

FREE = 1 << 30


class Library(Strict):
    """CuPy's names for what is there besides arrays.

    Attributes:
        launched: (kernel, number of inputs' axes that it reduced) of each launch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[tuple[str, int]] = []
        self.cuda = SimpleNamespace(runtime=SimpleNamespace(memGetInfo=lambda: (FREE, FREE), getDevice=lambda: 0))

    def ReductionKernel(self, *parts: str) -> Kernel:
        return Kernel(self, *parts)


class Kernel:
    """`cupy.ReductionKernel` for a sum, by Python's reading of its expressions."""

    def __init__(self, library: Library, *parts: str) -> None:
        inputs, output, self._map, reduction, post, identity, self._name = parts
        assert (reduction, identity) == ("a + b", "0")
        self._library, self._inputs = library, [declared.split()[1] for declared in inputs.split(",")]
        kind, self._output = output.split()
        self._kind = np.dtype(kind)
        name, self._post = post.split(" = ")
        assert name == self._output

    def __call__(self, *args: StrictArray, axis: tuple[int, ...]) -> None:
        *inputs, out = args
        arrays = np.broadcast_arrays(*map(unwrapped, inputs))
        assert all(array.dtype in (np.float32, np.float64) for array in arrays), "plain C types alone"
        names = dict(zip(self._inputs, arrays, strict=True)) | {"double": lambda x: x.astype(np.float64)}
        with np.errstate(over="ignore", invalid="ignore"):  # a device does not warn
            total = eval(self._map, names).sum(axis=axis)
            result = eval(self._post, {"sqrt": np.sqrt, "a": total})
        target = unwrapped(out)
        assert (target.shape, target.dtype) == (result.shape, self._kind), "a kernel writes into what it is given"
        target[...] = result
        self._library.launched.append((self._name, len(axis)))


class Device(StrictBackend):
    """The stand-in as a backend, with emulated half types. Use it with the fixture `devices` in force."""

    name = "stand-in"

    def __init__(self) -> None:
        self.xp = Library()

    def load(self, source: Any, dtype: str) -> Any:
        return self.xp.asarray(source.array(dtype))

    def describe(self) -> dict[str, str]:
        return {"device": "none at all", "stand-in": "1.0"}
