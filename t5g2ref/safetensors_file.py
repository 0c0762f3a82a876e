"""One safetensors file, read as untrusted input: header checked whole, tensors read in chunks.

The safetensors library's NumPy reader cannot give bfloat16, so this is a reader of our own. Tensors are read
with positioned reads of a few MiB and not through a memory map: a file cut short while mapped kills the
process (SIGBUS), a short read is an error with a name. No size in the header is believed before it is checked
against the size of the file. Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header
length, JSON header, data without holes).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5g2ref.backend import NUMPY, Backend
from t5g2ref.config_fields import unique_keys
from t5g2ref.stored import CHUNK, DTYPES, Array, Stored, WeightsError, convert, element, finite, stamp

__all__ = [  # numbers and errors of `stored` too: they are this reader's
    "CHUNK",
    "DTYPES",
    "Array",
    "Entry",
    "SafetensorsFile",
    "WeightsError",
    "convert",
    "element",
    "encode_header",
    "finite",
    "parse_header",
    "short",
]

MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit
CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_DIMS, _MAX_DIM, _MAX_NAME = 16, 1 << 48, 1024  # bound the work below, far above any tensor


@dataclass(frozen=True)
class Entry:
    """A tensor of the header: dtype by name ("bfloat16"), shape, and its bytes' span in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def short(value: object) -> str:
    """`repr` cut to a line's worth: names and values in a header may be of any length."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


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
            size = seen[0]
            if size < 8:
                raise WeightsError(f"{path}: has {size} bytes, expected at least 8; download the file again")
            length, most = int.from_bytes(handle.read(8), "little"), min(MAX_HEADER, size - 8)
            if length > most:
                said = f"the header is said to have {length} bytes, expected at most {most}"
                raise WeightsError(f"{path}: {said}; it is cut short or no safetensors: download it again")
            data = handle.read(length)
        return SafetensorsFile(path, parse_header(data, size, str(path)), seen)

    @contextmanager
    def reading(self, name: str) -> Iterator[Stored]:
        """The tensor, its file open at its first element for as long as the block lasts."""
        entry = self.entries[name]
        with _opened(self.path) as handle:
            handle.seek(entry.begin)
            yield Stored(self.path, name, DTYPES[entry.dtype], entry.shape, entry.begin, handle, self.stamp)

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
        with path.open("rb") as handle:
            yield handle
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}; check the file") from error


def parse_header(data: bytes, size: int, where: str) -> dict[str, Entry]:
    """Return {tensor: Entry} of a header, checked against a file of `size` bytes.

    WeightsError unless it is a JSON object without repeated keys, of known dtypes, whose spans fit their
    shapes and cover the rest of the file with neither overlap nor hole.
    """
    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: the header is not JSON: {error}; download the file again") from error
    if not isinstance(raw, dict):
        raise WeightsError(f"{where}: the header is a JSON {type(raw).__name__}, expected an object")
    if not isinstance(raw.pop("__metadata__", {}), dict):
        raise WeightsError(f"{where}: __metadata__ is no object; download the file again")
    for name in raw:
        if len(name) > _MAX_NAME:
            raise WeightsError(f"{where}: a name has {len(name)} characters, expected at most {_MAX_NAME}")
    start = 8 + len(data)
    entries = {name: _entry(entry, start, f"{where}: {short(name)}") for name, entry in raw.items()}
    _check_cover(entries, start, size, where)
    return entries


def _entry(raw: object, start: int, name: str) -> Entry:
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{name} is {short(raw)}, expected an object of dtype, shape and data_offsets")
    code, shape, span = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(code, str) or code not in CODES:
        raise WeightsError(f"{name} has dtype {short(code)}, expected one of {', '.join(CODES)}; convert it")
    if not _naturals(shape) or len(shape) > _MAX_DIMS:
        raise WeightsError(f"{name} has shape {short(shape)}, expected a list of non-negative integers")
    if not _naturals(span) or len(span) != 2:
        raise WeightsError(f"{name} has data_offsets {short(span)}, expected two non-negative integers")
    expected = math.prod(shape) * DTYPES[CODES[code]].itemsize
    if span[1] - span[0] != expected:
        found = f"data_offsets {short(span)}"
        raise WeightsError(f"{name} has {found}, expected a span of {expected} bytes for {code} {short(shape)}")
    return Entry(CODES[code], tuple(shape), start + span[0], start + span[1])


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(item) is int and 0 <= item <= _MAX_DIM for item in values)


def _check_cover(entries: Mapping[str, Entry], start: int, size: int, where: str) -> None:
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            kind = "overlaps the tensor before it" if entry.begin < at else "leaves a hole before it"
            found = f"begins at byte {entry.begin} of the file, expected {at}"
            raise WeightsError(f"{where}: {short(name)} {found}: it {kind}; download the file again")
        at = entry.end
    if at != size:
        raise WeightsError(f"{where}: the tensors end at byte {at}, the file has {size}; download it again")


def encode_header(entries: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, Entry]]:
    """Return the first bytes of a file of {tensor: (dtype, shape)}, and where each tensor's bytes belong."""
    codes = {name: code for code, name in CODES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    at, spans = 0, {}
    for name, (dtype, shape) in entries.items():
        spans[name] = (at, at + math.prod(shape) * element(dtype).itemsize)
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": list(spans[name])}
        at = spans[name][1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    start = 8 + len(text)
    placed = {name: Entry(*entries[name], start + begin, start + end) for name, (begin, end) in spans.items()}
    return len(text).to_bytes(8, "little") + text, placed
