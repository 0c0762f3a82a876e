"""One safetensors file, read as untrusted input: header checked whole, tensors decoded in chunks.

The safetensors library's NumPy reader cannot give bfloat16, so this is a reader of our own. Tensors are read
with positioned reads of a few MiB and not through a memory map: a file cut short while mapped kills the
process (SIGBUS), a short read is an error with a name. No size in the header is believed before it is checked
against the size of the file. Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header
length, JSON header, data without holes).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from t5g2ref.config_fields import unique_keys
from t5g2ref.numerics import to_odd

Array = NDArray[Any]
MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit
CHUNK = 1 << 19  # elements of a tensor in hand at a time, 1 to 4 MiB
DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_DIMS, _MAX_DIM, _MAX_NAME = 16, 1 << 48, 1024  # bound the work below, far above any tensor


class WeightsError(ValueError):
    """A checkpoint that cannot be used: says which tensor or file, what was expected, found, and to do."""


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


def element(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name, or raise WeightsError."""
    if dtype not in DTYPES:
        raise WeightsError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


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
            stamp = _stamp(handle)
            size = stamp[0]
            if size < 8:
                raise WeightsError(f"{path}: has {size} bytes, expected at least 8; download the file again")
            length, most = int.from_bytes(handle.read(8), "little"), min(MAX_HEADER, size - 8)
            if length > most:
                said = f"the header is said to have {length} bytes, expected at most {most}"
                raise WeightsError(f"{path}: {said}; it is cut short or no safetensors: download it again")
            data = handle.read(length)
        return SafetensorsFile(path, parse_header(data, size, str(path)), stamp)

    def chunks(self, name: str) -> Iterator[Array]:
        """Yield the tensor's elements in stored dtype and order, flat, CHUNK at a time."""
        entry = self.entries[name]
        step = CHUNK * DTYPES[entry.dtype].itemsize
        with _opened(self.path) as handle:
            handle.seek(entry.begin)
            left = entry.end - entry.begin
            while left:
                data = handle.read(min(step, left))
                if len(data) < min(step, left) or _stamp(handle) != self.stamp:
                    raise WeightsError(f"{self.path}: changed while {name} was being read; open it again")
                left -= len(data)
                yield np.frombuffer(data, DTYPES[entry.dtype])

    def read(self, name: str, dtype: str) -> Array:
        """Return the tensor in `dtype`, read-only; widening is exact, narrowing rounds to nearest even.

        WeightsError where a value is NaN or infinite, or becomes infinite in `dtype`.
        """
        entry = self.entries[name]
        # The header's span has been checked against the file, so this is at most 4 times what is on disk.
        out = np.empty(math.prod(entry.shape), element(dtype))
        at = 0
        for chunk in self.chunks(name):
            out[at : at + chunk.size] = finite(chunk, dtype, f"{self.path.name}: {name}")
            at += chunk.size
        out.flags.writeable = False
        return out.reshape(entry.shape)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as handle:
            yield handle
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}; check the file") from error


def _stamp(handle: BinaryIO) -> tuple[int, ...]:
    info = os.fstat(handle.fileno())
    return info.st_size, info.st_dev, info.st_ino, info.st_mtime_ns


def finite(x: Array, dtype: str, name: str) -> Array:
    """Return x in `dtype`; WeightsError where it holds NaN or Inf, before or after the conversion."""
    out = convert(x, dtype)
    if not np.isfinite(out).all():
        if np.isfinite(x).all():
            raise WeightsError(f"{name} has values beyond {dtype}'s range; use float32 or bfloat16")
        raise WeightsError(f"{name} has NaN or Inf, expected finite weights; download the checkpoint again")
    return out


def convert(x: Array, dtype: str) -> Array:
    """Return x (any of DTYPES) as `dtype`, rounded once, to nearest even; x itself if it has that dtype."""
    target = element(dtype)
    if x.dtype == target:
        return x
    if x.dtype == DTYPES["bfloat16"]:  # the upper half of a float32: exact
        x = (x.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # `finite` looks for what overflowed
        if x.dtype == np.float64 and target == DTYPES["bfloat16"]:
            x = to_odd(x)
        return x.astype(target, copy=False)


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
