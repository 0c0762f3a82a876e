"""One safetensors file of weights, read as untrusted input: header checked whole, tensors read in chunks.

The safetensors library's NumPy reader cannot give bfloat16, so this is a reader of our own. Tensors are read
with positioned reads of a few MiB and not through a memory map: a file cut short while mapped kills the
process (SIGBUS), a short read is an error with a name.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5g2ref.backend import NUMPY, Backend
from t5g2ref.checkpoint.header import SEEN, Entry, HeaderError, encode_header, read_header
from t5g2ref.checkpoint.tensor import CHUNK, Array, Stored, WeightsError, convert, element, finite, stamp
from t5g2ref.files import opened

__all__ = [  # numbers and errors of `stored`, and the header: they are this reader's
    "CHUNK",
    "Array",
    "Entry",
    "SafetensorsFile",
    "WeightsError",
    "convert",
    "element",
    "encode_header",
    "finite",
]


@dataclass(frozen=True)
class SafetensorsFile:
    """A checked header; `stamp` tells whether the file is still the one whose header was read."""

    path: Path
    entries: Mapping[str, Entry]
    stamp: tuple[int, ...]

    @staticmethod
    def open(path: Path) -> SafetensorsFile:
        """Read and check the header; no tensor is read. WeightsError for anything out of order."""
        with _opened(path) as handle:
            seen = stamp(handle)
            try:
                entries = read_header(handle, seen[0], SEEN)
            except HeaderError as error:
                remedy = error.remedy or "download the file again"
                raise WeightsError(f"{path}: {error}; {remedy}") from error
        return SafetensorsFile(path, entries, seen)

    @contextmanager
    def reading(self, name: str) -> Iterator[Stored]:
        """The tensor, its file open at its first element for as long as the block lasts."""
        entry = self.entries[name]
        with _opened(self.path) as handle:
            handle.seek(entry.begin)
            yield Stored(self.path, name, entry.dtype, entry.shape, entry.begin, handle, self.stamp)

    def chunks(self, name: str) -> Iterator[Array]:
        """Yield the tensor's elements in stored dtype and order, flat, CHUNK at a time."""
        with self.reading(name) as tensor:
            yield from tensor.chunks()

    def read(self, name: str, dtype: str, backend: Backend = NUMPY) -> Any:
        """Return the tensor as an array of the backend in `dtype`, on NumPy read-only; widening is exact, narrowing
        rounds to nearest even.

        WeightsError where a value is NaN or infinite, or becomes infinite in `dtype`; BackendError where the device
        has no room for it.
        """
        element(dtype)
        with self.reading(name) as tensor:
            return backend.load(tensor, dtype)


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    try:
        with opened(path) as handle:
            yield handle
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}; check the file") from error
