"""The header of a safetensors file as untrusted input: nothing that it says is believed before the file bears it out.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data without holes).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from t5g2ref.config.fields import from_json, short

MAX_HEADER = 1 << 22  # bytes: thirty thousand tensors, twenty times those of the largest release
FLOATS: dict[str, np.dtype[Any]] = {
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (8, 4, 2)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
ANY: dict[str, np.dtype[Any]] = {
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    **FLOATS,
    "BOOL": np.dtype(np.bool_),
}
SEEN: dict[str, np.dtype[Any]] = {  # what a file of weights may hold before it is known what it is
    **ANY,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
CODES = {dtype: code for code, dtype in SEEN.items()}
_MAX_DIMS, _MAX_DIM, _MAX_NAME = 16, 1 << 48, 1024  # bound the work below, far above any tensor


class HeaderError(ValueError):
    """A header that is out of order: what was expected and found. `remedy`: what to do, where that is not simply to
    get or to write the file once more."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Entry:
    """A tensor of the header: its type, its shape, and its bytes' span in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(
    handle: BinaryIO, size: int, codes: Mapping[str, np.dtype[Any]], largest: int = MAX_HEADER
) -> dict[str, Entry]:
    """{tensor: Entry} of the file of `size` bytes that `handle` stands at the beginning of; see `parse_header`."""
    if size < 8:
        raise HeaderError(f"has {size} bytes, expected at least 8")
    length, most = int.from_bytes(handle.read(8), "little"), min(largest, size - 8)
    if length > most:
        said = f"the header is said to have {length} bytes, expected at most {most}"
        raise HeaderError(f"{said}: it is cut short, or no safetensors")
    return parse_header(handle.read(length), size, codes)


def parse_header(data: bytes, size: int, codes: Mapping[str, np.dtype[Any]]) -> dict[str, Entry]:
    """{tensor: Entry} of a header, checked against a file of `size` bytes.

    HeaderError unless it is a JSON object without repeated keys, of types in `codes`, whose spans fit their shapes
    and cover the rest of the file with neither overlap nor hole.
    """
    try:
        raw = from_json(data)
    except ValueError as error:
        raise HeaderError(f"the header is not JSON: {short(str(error))}") from error
    if not isinstance(raw, dict):
        raise HeaderError(f"the header is a JSON {type(raw).__name__}, expected an object")
    if not isinstance(raw.pop("__metadata__", {}), dict):
        raise HeaderError("__metadata__ is no object")
    if (longest := max(map(len, raw), default=0)) > _MAX_NAME:
        raise HeaderError(f"a name has {longest} characters, expected at most {_MAX_NAME}")
    start = 8 + len(data)
    entries = {name: _entry(entry, start, codes, short(name)) for name, entry in raw.items()}
    _check_cover(entries, start, size)
    return entries


def _entry(raw: object, start: int, codes: Mapping[str, np.dtype[Any]], name: str) -> Entry:
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"{name} is {short(raw)}, expected an object of dtype, shape and data_offsets")
    code, shape, span = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(code, str) or code not in codes:
        raise HeaderError(f"{name} has dtype {short(code)}, expected one of {', '.join(codes)}", "convert it")
    if not _naturals(shape) or len(shape) > _MAX_DIMS or (0 in shape and math.prod(filter(None, shape)) > _MAX_DIM):
        raise HeaderError(f"{name} has shape {short(shape)}, expected a list of non-negative integers")
    if not _naturals(span) or len(span) != 2:
        raise HeaderError(f"{name} has data_offsets {short(span)}, expected two non-negative integers")
    expected = math.prod(shape) * codes[code].itemsize
    if span[1] - span[0] != expected:
        found = f"data_offsets {short(span)}"
        raise HeaderError(f"{name} has {found}, expected a span of {expected} bytes for {code} {short(shape)}")
    return Entry(codes[code], tuple(shape), start + span[0], start + span[1])


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(item) is int and 0 <= item <= _MAX_DIM for item in values)


def _check_cover(entries: Mapping[str, Entry], start: int, size: int) -> None:
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            kind = "overlaps the tensor before it" if entry.begin < at else "leaves a hole before it"
            raise HeaderError(f"{short(name)} begins at byte {entry.begin} of the file, expected {at}: it {kind}")
        at = entry.end
    if at != size:
        raise HeaderError(f"the tensors end at byte {at}, the file has {size}")


PYTORCH = {"format": "pt"}  # transformers asks for it


def encode_header(
    tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str] = PYTORCH
) -> tuple[bytes, dict[str, Entry]]:
    """The first bytes of a file of {tensor: (dtype, shape)}, and where each tensor's bytes belong."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at, spans = 0, {}
    for name, (dtype, shape) in tensors.items():
        spans[name] = (at, at + math.prod(shape) * dtype.itemsize)
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": list(spans[name])}
        at = spans[name][1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    start = 8 + len(text)
    placed = {name: Entry(*tensors[name], start + begin, start + end) for name, (begin, end) in spans.items()}
    return len(text).to_bytes(8, "little") + text, placed
