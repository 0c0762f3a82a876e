"""NumPy in place of the device behind the CUDA backend's loader, and files for it to load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from helpers import Array, generator, same_bits

from t5g2ref.backend import Backend
from t5g2ref.backend.cuda import loading
from t5g2ref.backend.interface import Source
from t5g2ref.checkpoint.file import SafetensorsFile, encode_header
from t5g2ref.checkpoint.tensor import STORED

TYPES = ("float64", "float32", "float16", "bfloat16")


class Ordinary:
    """A buffer whose copy to the "device" is late: made when the next one is sent or the host waits, and the host
    memory is spoilt then. A loader that does not wait, or writes before it has waited, loses its data."""

    def __init__(self, size: int, sent: Callable[[Array], None]) -> None:
        self.host = np.full(size, 0xFF, np.uint8)
        self.waited, self._sent = False, sent

    def send(self, to: Array) -> None:
        assert self.waited, "sent again without a wait"
        self.waited = False
        to.view(np.uint8)[...] = self.host[: to.nbytes]
        self._sent(to)

    def wait(self) -> None:
        self.waited = True
        self.host[...] = 0xFF


class Elsewhere(Backend):
    """NumPy behind the loader of the CUDA backend, with its rule for float64."""

    name = "elsewhere"

    def __init__(self, sent: Callable[[Array], None] = lambda to: None) -> None:
        self.buffers: list[Ordinary] = []
        self.asked: list[tuple[int, str]] = []
        self.depth = 0
        self._sent, self._loader = sent, loading.Loader(np, self._buffer)

    def _buffer(self, size: int) -> Ordinary:
        self.buffers.append(Ordinary(size, self._sent))
        return self.buffers[-1]

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def load(self, source: Source, dtype: str) -> Array:
        with np.errstate(all="ignore"):  # a device does not warn
            out: Array = self._loader.load(source, dtype)
        return out

    def kept(self, stored: str, dtype: str, *, narrow: bool = False) -> str:
        return "float32" if dtype == "float64" and stored != "float64" else dtype

    def require(self, bytes_needed: int, what: str) -> None:
        assert not self.buffers, "asked after something was read"
        self.asked.append((bytes_needed, what))


def samples(stored: str, wanted: str) -> Array:
    """Numbers of one type that stay finite in another: both zeros, the least and the largest, subnormal numbers of
    each type, ties and their neighbours, and random ones."""
    least = [2.0**-24, 3 * 2.0**-26, 2.0**-133, 2.0**-149, 5 * 2.0**-136, 3 * 2.0**-150, 2.0**-1074]
    near = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-40, 1 - 2.0**-26]
    largest = [2.0**15, 65504.0, 65519.0, 1e38, 1e300]
    rng = generator(f"{stored} to {wanted}")
    mixed = rng.normal(size=500) * 2.0 ** rng.integers(-30, 12, 500)
    values = np.array([0.0, *least, *near, *largest, *mixed])
    with np.errstate(over="ignore", under="ignore"):
        x = np.concatenate([values, -values]).astype(STORED[stored])
        wide = x.astype(np.float64)
        kept = np.isfinite(wide) & np.isfinite(wide.astype(np.float32).astype(STORED[wanted]).astype(np.float64))
    return np.asarray(x[kept])


def store(folder: Path, **tensors: Array) -> SafetensorsFile:
    """A file of these tensors, each stored in its own dtype."""
    header, _ = encode_header({name: (x.dtype, x.shape) for name, x in tensors.items()})
    path = folder / "model.safetensors"
    path.write_bytes(header + b"".join(x.tobytes() for x in tensors.values()))
    return SafetensorsFile.open(path)


def equal(found: Any, expected: Array) -> None:
    """same_bits, and empty arrays too."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if expected.size:
        same_bits(found, expected)
