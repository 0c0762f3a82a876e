"""Tensors as files hold them: four number types, conversion that rounds once, and one tensor while it is read."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from t5g2ref.backend import BackendError
from t5g2ref.dtypes import DTYPES, HALF, to_odd

Array = NDArray[Any]
CHUNK = 1 << 19  # elements of a tensor in hand at a time, 1 to 4 MiB
STORED: dict[str, np.dtype[Any]] = {
    name: np.dtype(HALF[name]) if name == "bfloat16" else np.dtype(name).newbyteorder("<") for name in DTYPES
}
"""What a tensor of a file may be, by its type's name."""


class WeightsError(ValueError):
    """A checkpoint that cannot be used: says which tensor or file, what was expected, found, and to do."""


def element(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name, or raise WeightsError."""
    if dtype not in STORED:
        raise WeightsError(f"dtype is {dtype!r}, expected one of {', '.join(STORED)}")
    return STORED[dtype]


def finite(x: Array, dtype: str, name: str) -> Array:
    """Return x in `dtype`; WeightsError where it holds NaN or Inf, before or after the conversion."""
    out = convert(x, dtype)
    if not np.isfinite(out).all():
        if np.isfinite(x).all():
            raise WeightsError(f"{name} has values beyond {dtype}'s range; use float32 or bfloat16")
        raise WeightsError(f"{name} has NaN or Inf, expected finite weights; download the checkpoint again")
    return out


def convert(x: Array, dtype: str) -> Array:
    """Return x (any of STORED) as `dtype`, rounded once, to nearest even; x itself if it has that dtype."""
    target = element(dtype)
    if x.dtype == target:
        return x
    if x.dtype == STORED["bfloat16"]:  # the upper half of a float32: exact
        x = (x.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # `finite` looks for what overflowed
        if x.dtype == np.float64 and target == STORED["bfloat16"]:
            x = to_odd(x)
        return x.astype(target, copy=False)


@dataclass(frozen=True)
class Stored:
    """One tensor of an open file: what a backend loads (`backend.Source`).

    Args:
        path, name: for messages.
        dtype: of the elements in the file.
        shape: of the tensor.
        begin: its first byte in the file.
        handle: the open file.
        stamp: what `stamp(handle)` was when the header was read.
    """

    path: Path
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    handle: io.BufferedReader
    stamp: tuple[int, ...]

    def fill(self, part: Array) -> None:
        """Read the next `part.size` elements into `part` (1-D, dense, of the stored dtype)."""
        read = self.handle.readinto(part.view(np.uint8).data)
        if read < part.nbytes or stamp(self.handle) != self.stamp:
            raise WeightsError(f"{self.path}: changed while {self.name} was being read; open it again")

    def chunks(self) -> Iterator[Array]:
        """Yield all elements in stored dtype and order, flat, CHUNK at a time, each chunk an array of its own."""
        self.handle.seek(self.begin)
        size = math.prod(self.shape)
        for start in range(0, size, CHUNK):
            chunk = np.empty(min(CHUNK, size - start), self.dtype)
            self.fill(chunk)
            yield chunk

    def finite(self, part: Array, dtype: str) -> Array:
        """`part`, elements of this tensor, in `dtype`; WeightsError where one is not finite, before or after."""
        return finite(part, dtype, f"{self.path.name}: {self.name}")

    def array(self, dtype: str) -> Array:
        """The whole tensor on the host, read-only; widening is exact, narrowing rounds to nearest even."""
        # The header's span has been checked against the file, so this is at most 4 times what is on disk.
        out = np.empty(math.prod(self.shape), element(dtype))
        at = 0
        for chunk in self.chunks():
            out[at : at + chunk.size] = self.finite(chunk, dtype)
            at += chunk.size
        out.flags.writeable = False
        return out.reshape(self.shape)

    def refuse(self, dtype: str) -> NoReturn:
        """Raise for a tensor that a device found not finite in `dtype`: read again, so that the message is the one
        that the host gives. BackendError if the file has no such value."""
        for chunk in self.chunks():
            self.finite(chunk, dtype)
        raise BackendError(
            f"{self.path.name}: {self.name} has NaN or Inf on the device and none in the file: the copy went wrong; "
            "load it again, and test the device's memory if that does not help"
        )


def stamp(handle: io.BufferedReader) -> tuple[int, ...]:
    """What tells one state of a file from another: size, device, inode and time of the last change."""
    info = os.fstat(handle.fileno())
    return info.st_size, info.st_dev, info.st_ino, info.st_mtime_ns
