"""safetensors from a stranger: a path that stays in its folder, a header checked whole, tensors in any of their types.

The header is read as `t5g2ref.safetensors_file` reads it; this knows integers and bool besides, and leaves a NaN for
the judge to find. No size is believed before it is checked against the size of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np

from t5g2ref.config_fields import unique_keys
from t5g2ref.safetensors_file import MAX_HEADER, short
from t5g2ref.stored import Stored, WeightsError, stamp

Array = np.ndarray[Any, Any]
CODES: dict[str, np.dtype[Any]] = {
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(np.bool_),
}
_MAX_DIMS, _MAX_DIM, _MAX_NAME = 16, 1 << 48, 1024


class DumpError(ValueError):
    """A dump that cannot be judged: says which file or entry, what was expected and found."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the header: its type, its shape, and where its bytes are in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Tensors:
    """A checked file; `stamp` tells whether it is still the one whose header was read."""

    path: Path
    name: str
    entries: Mapping[str, Entry]
    stamp: tuple[int, ...]

    @staticmethod
    def open(root: Path, name: object) -> Tensors:
        """The file `name` inside the folder `root`; DumpError for anything out of order. No tensor is read."""
        path, shown = confined(root, name), short(name)
        try:
            with path.open("rb") as handle:
                seen = stamp(handle)
                length, most = int.from_bytes(handle.read(8), "little"), min(MAX_HEADER, seen[0] - 8)
                if seen[0] < 8:
                    raise DumpError(f"{shown}: has {seen[0]} bytes, expected at least 8; write it again")
                if length > most:
                    said = f"expected a header of at most {most} bytes, found one that claims {length}"
                    raise DumpError(f"{shown}: {said}; it is cut short, or no safetensors: write it again")
                data = handle.read(length)
        except OSError as error:
            raise DumpError(f"{shown}: cannot be read: {error.strerror}") from error
        return Tensors(path, str(name), _header(data, seen[0], shown), seen)

    def read(self, name: str) -> Array:
        """The tensor in its own type, NaN and all."""
        entry = self.entries[name]
        size = math.prod(entry.shape)
        raw = np.dtype(np.uint8) if entry.dtype == np.bool_ else entry.dtype  # a bool of 2 would be neither
        out = np.empty(size, raw)  # no larger than the file, whose header has been checked
        try:
            with self.path.open("rb") as handle:
                at = 0
                for chunk in Stored(self.path, name, raw, entry.shape, entry.begin, handle, self.stamp).chunks():
                    out[at : at + chunk.size] = chunk
                    at += chunk.size
        except (OSError, WeightsError) as error:
            raise DumpError(f"{short(self.name)}: {short(name)}: {error}") from error
        if entry.dtype == np.bool_:
            out = truths(out, f"{short(self.name)}: {short(name)}")
        return out.reshape(entry.shape)


def truths(array: Array, what: str) -> Array:
    """uint8 as bool; DumpError for any other number than 0 and 1."""
    if array.size and int(array.max()) > 1:
        raise DumpError(f"{what}: expected 0 and 1 for a bool, found {int(array.max())}")
    return array.astype(np.bool_)


def confined(root: Path, name: object) -> Path:
    """root / name, a file that is inside of root wherever links lead; DumpError for any other."""
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise DumpError(f"a file is called {short(name)}, expected a path inside the folder")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or set(name) & set("\\:"):
        raise DumpError(f"a file is called {short(name)}, expected a path inside the folder, without .. in it")
    try:
        target = (root / path).resolve()
        inside, there = target.is_relative_to(root.resolve()), target.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, a ring of links
        raise DumpError(f"{short(name)}: cannot be read: {error}") from error
    if not inside:
        raise DumpError(f"{short(name)}: a link out of the folder; copy the file into it")
    if not there:
        raise DumpError(f"{short(name)}: no such file in the folder")
    return target


def _header(data: bytes, size: int, where: str) -> dict[str, Entry]:
    """{name: Entry} of a header, checked against a file of `size` bytes: spans fit their shapes, and cover the rest
    of the file with neither overlap nor hole."""
    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise DumpError(f"{where}: the header is not JSON: {short(str(error))}; write it again") from error
    if not isinstance(raw, dict):
        raise DumpError(f"{where}: the header is a JSON {type(raw).__name__}, expected an object")
    raw.pop("__metadata__", None)
    start = 8 + len(data)
    entries = {name: _entry(entry, start, f"{where}: {short(name)}") for name, entry in raw.items()}
    spans = sorted((entry.begin, entry.end) for entry in entries.values())
    for (_, end), (begin, _) in pairwise([(start, start), *spans, (size, size)]):
        if begin != end:
            found = "overlap" if begin < end else "leave a hole, or the file is longer than they are"
            raise DumpError(f"{where}: expected tensors without gaps, found that they {found} at byte {begin}")
    return entries


def _entry(raw: object, start: int, where: str) -> Entry:
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise DumpError(f"{where} is {short(raw)}, expected an object of dtype, shape and data_offsets")
    code, shape, span = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(code, str) or code not in CODES:
        raise DumpError(f"{where} has dtype {short(code)}, expected one of {', '.join(CODES)}")
    if not _naturals(shape) or len(shape) > _MAX_DIMS:
        raise DumpError(f"{where} has shape {short(shape)}, expected a list of non-negative integers")
    expected = math.prod(shape) * CODES[code].itemsize
    if not _naturals(span) or len(span) != 2 or span[1] - span[0] != expected:
        raise DumpError(f"{where} has data_offsets {short(span)}, expected a span of {expected} bytes")
    return Entry(CODES[code], tuple(shape), start + span[0], start + span[1])


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(item) is int and 0 <= item <= _MAX_DIM for item in values)
