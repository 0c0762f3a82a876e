"""Weights from a file to the device: through two pinned buffers, filled and sent in turn, converted where they land.

While one buffer's copy and conversion run on the device, the next part is read from the file into the other one. What
is written here knows the array namespace and two kinds of buffer, so that it runs on NumPy in the tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import prod
from typing import Any, Protocol

import numpy as np

from t5g2ref.backend.interface import Source
from t5g2ref.dtypes import HALF

Array = Any
PART = 16 << 20  # bytes of one buffer
# Stored and wanted type of what the device converts. Float64 on either side is left to the host, and is rare (a
# float64 model keeps float32, `Backend.kept`): CuPy compiles every kernel with -ftz=true, which takes float32's
# subnormal numbers for 0 on the way, and it goes from float64 to a half type by two roundings.
ON_DEVICE = {(a, b) for a in ("float32", *HALF) for b in ("float32", *HALF) if a != b}

EXPONENT: dict[str, Any] = {  # the bits of a number that are all set in NaN and Inf alone
    "float64": np.uint64(0x7FF0_0000_0000_0000),
    "float32": np.uint32(0x7F80_0000),
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
}


class Buffer(Protocol):
    """Host memory that the device reads while the host goes on."""

    host: np.ndarray[Any, Any]  # uint8, PART long

    def send(self, to: Array) -> None:
        """Start copying the first `to.nbytes` bytes into `to` (1-D, dense), in the order of the backend's stream."""

    def wait(self) -> None:
        """Return when what was sent has been copied and `host` may be written again."""


class Loader:
    """Two buffers, made at first use and kept; threads take turns, a tensor at a time.

    Args:
        xp: the array namespace of the device; `load` is called inside its scope.
        make: a new buffer of so many bytes.
    """

    def __init__(self, xp: Any, make: Callable[[int], Buffer]) -> None:
        self._xp, self._make = xp, make
        self._buffers: tuple[Buffer, ...] = ()
        self._lock = threading.Lock()

    def load(self, source: Source, dtype: str) -> Array:
        """See `Backend.load`. Beside the result, the device holds a few parts at a time; it is waited for once."""
        target = np.dtype(HALF.get(dtype, dtype))
        out = self._xp.empty(prod(source.shape), dtype=target)
        step = PART // max(source.dtype.itemsize, target.itemsize)
        starts = range(0, out.size, step)
        wrong = self._xp.zeros(len(starts), dtype=bool)
        with self._lock:
            self._buffers = self._buffers or (self._make(PART), self._make(PART))
            for turn, start in enumerate(starts):
                part = out[start : start + step]
                self._move(source, dtype, part, self._buffers[turn % 2])
                wrong[turn] = not_finite(part)
            if out.size and bool(wrong.any()):  # the wait
                source.refuse(dtype)
        return out.reshape(source.shape)

    def _move(self, source: Source, dtype: str, part: Array, buffer: Buffer) -> None:
        """Fill `part` on the device with the next elements of the file."""
        buffer.wait()
        host = buffer.host[: part.size * source.dtype.itemsize].view(source.dtype)
        source.fill(host)
        if source.dtype == part.dtype:
            buffer.send(part)
        elif (source.dtype.name, dtype) in ON_DEVICE:
            stored = self._xp.empty(part.size, dtype=source.dtype)
            buffer.send(stored)
            part[...] = converted(stored, part.dtype)
        else:
            buffer.host[: part.nbytes].view(part.dtype)[...] = source.finite(host, dtype)
            buffer.send(part)


def converted(x: Array, target: np.dtype[Any]) -> Array:
    """x in `target`, for the pairs of ON_DEVICE: by way of float32, which holds every half number."""
    if x.dtype.name == "bfloat16":  # the upper half of a float32, and no arithmetic that could flush it
        x = (x.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x.astype(np.float32, copy=False).astype(target, copy=False)


def not_finite(x: Array) -> Array:
    """Whether any of x is NaN or Inf, as an array (): all bits of an exponent are set. NaN and Inf stay what they are
    in every conversion, so that looking at the result is looking at both."""
    mask = EXPONENT[x.dtype.name]
    return ((x.view(mask.dtype) & mask) == mask).any()
