"""Spoils safetensors files: lengths, types, shapes and places in the header, or values behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from fuzzing import raw, tree

CODES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "f32")
LENGTHS = (0, 1, 7, 8, 1 << 22, (1 << 22) + 1, 1 << 31, 1 << 32, 1 << 47, 1 << 63, (1 << 64) - 1)
AXES = (0, 1, 2, 3, 7, 1 << 16, 1 << 31, 1 << 40, 1 << 48, (1 << 48) + 1, 1 << 62, 1 << 64, -1, True, 2.0, "2", None)


def taken_apart(data: bytes) -> tuple[Any, bytes]:
    """(tree of the header, what is behind it) of a sound file."""
    start = 8 + int.from_bytes(data[:8], "little")
    return tree.parsed(data[8:start]), data[start:]


def joined(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = tree.text(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def spoilt(rng: Random, data: bytes) -> bytes:
    """A file, spoilt in one of all ways."""
    how = rng.random()
    if how < 0.2:
        return raw.spoilt(rng, data)
    header, behind = taken_apart(data)
    if how < 0.3:
        return joined(header, raw.spoilt(rng, behind))
    for _ in range(rng.randint(1, 2)):
        rng.choice(CHANGES)(rng, header)
    if how > 0.9:
        behind += rng.randbytes(rng.choice((1, 8, 1000)))
    return joined(header, behind, rng.choice(LENGTHS) if 0.3 < how < 0.36 else None)


def _tensors(header: Any) -> list[Any]:
    return [item for item in header if isinstance(item[1], tree.Pairs)]


def _field(rng: Random, header: Any, name: str) -> list[Any]:
    """The [key, value] of a field of some tensor; one apart from the header where there is none."""
    if not (tensors := _tensors(header)):
        return [name, []]
    fields = [pair for pair in rng.choice(tensors)[1] if pair[0] == name]
    return fields[0] if fields else [name, []]


def _structure(rng: Random, header: Any) -> None:
    tree.spoil(rng, header, 2)


def _type(rng: Random, header: Any) -> None:
    _field(rng, header, "dtype")[1] = rng.choice(CODES)


def _shape(rng: Random, header: Any) -> None:
    """One axis more, fewer or of another length; or the same number of elements in another shape."""
    pair = _field(rng, header, "shape")
    shape = list(pair[1]) if isinstance(pair[1], list) else []
    how = rng.randrange(4)
    if how == 0 and shape:
        shape[rng.randrange(len(shape))] = rng.choice(AXES)
    elif how == 1:
        shape.insert(rng.randint(0, len(shape)), rng.choice(AXES))
    elif how == 2:
        shape.reverse()
    else:
        shape = [rng.choice(AXES) for _ in range(rng.choice((0, 1, 2, 5, 17, 1000)))]
    pair[1] = shape


def _offsets(rng: Random, header: Any) -> None:
    pair = _field(rng, header, "data_offsets")
    if not (isinstance(pair[1], list) and len(pair[1]) == 2 and all(type(n) is int for n in pair[1])):
        return
    begin, end = pair[1]
    by = rng.choice((1, -1, 4, 8, 1 << 20, 1 << 40, 1 << 63))
    pair[1] = rng.choice(([begin + by, end + by], [end, begin], [begin, end + by], [begin, begin], [begin + by, end]))


def _exchange(rng: Random, header: Any) -> None:
    """Two tensors change a field: places, so that they overlap, or names."""
    if len(tensors := _tensors(header)) < 2:
        return
    one, other = rng.sample(tensors, 2)
    if rng.random() < 0.3:
        one[0], other[0] = other[0], one[0]
        return
    name = rng.choice(("data_offsets", "shape", "dtype"))
    a = next((pair for pair in one[1] if pair[0] == name), None)
    b = next((pair for pair in other[1] if pair[0] == name), None)
    if a and b:
        a[1], b[1] = b[1], a[1]


def _empty(rng: Random, header: Any) -> None:
    """Very many tensors without a byte."""
    entry = tree.Raw(json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}))
    stem = rng.choice(("x", "decoder.layers.", "model.encoder.layers.", "n" * 1000))
    header += [[f"{stem}{n}", entry] for n in range(rng.choice((10, 1000, 20_000 if len(stem) < 99 else 3000)))]


def _metadata(rng: Random, header: Any) -> None:
    header.append(["__metadata__", rng.choice((None, [], "x", 1, tree.Pairs([["a", 1]]), tree.Pairs([["a", "b"]])))])


Change = Callable[[Random, Any], None]
CHANGES: tuple[Change, ...] = (_structure, _type, _shape, _shape, _offsets, _offsets, _exchange, _empty, _metadata)
