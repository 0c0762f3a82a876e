"""Values of dataclasses as plain JSON, and back: every field is checked against its annotation, and nothing else comes.

A dataclass is the list of its fields' values, in their order. Numbers keep every bit. What JSON has no number for is
"nan", "inf" or "-inf", and an array is its bytes in base64, so it takes no more room than the text that held it.
"""

from __future__ import annotations

import base64
import binascii
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import numpy as np

from t5g2ref.config.fields import short

Array = np.ndarray[Any, Any]
WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
LARGEST = 1 << 53  # of a whole number: every language reads it
LONGEST = 1 << 16  # characters of a text
KINDS = ("float32", "float64", "int32", "int64", "uint8", "bool")
NESTED = 4  # lists and objects within each other, where an annotation says Any


class PlainError(ValueError):
    """The value is not of its type. The message says where, what was expected, and what was found."""


def encoded(value: Any) -> Any:
    """The value in lists, objects, texts and numbers. TypeError for what has no such form."""
    if is_dataclass(value) and not isinstance(value, type):
        return [encoded(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return {_key(key): encoded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, np.ndarray):
        return of_array(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return _shown(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"a {type(value).__name__} has no plain form")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{key!r} is no name")
    return _shown(key)


def _shown(text: str) -> str:
    """A text that is read back: what no terminal shows is a blank."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text[:LONGEST])


def of_array(array: Array) -> list[Any]:
    """[type, shape, bytes in base64, little-endian]; float64 that float32 holds to the bit takes half the room."""
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        if single.astype(np.float64).tobytes() == array.tobytes():
            array = single
    words = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return [array.dtype.name, list(array.shape), base64.b64encode(words.tobytes()).decode("ascii")]


def array_of(raw: Any, where: str) -> Array:
    """The array. Raises PlainError where type, shape and bytes do not fit together."""
    name, shape, data = raw if isinstance(raw, list) and len(raw) == 3 else (None, None, None)
    if name not in KINDS or not isinstance(data, str) or not isinstance(shape, list) or len(shape) > 8:
        raise PlainError(f"{where} is {short(raw, 60)}, expected [type, shape, bytes in base64]")
    sizes = [_int(n, where) for n in shape]
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PlainError(f"{where}: its bytes are not base64") from error
    kind = np.dtype(name).newbyteorder("<")
    if min(sizes, default=0) < 0 or math.prod(sizes) * kind.itemsize != len(content):
        raise PlainError(f"{where}: {len(content)} bytes, expected those of {name} {tuple(sizes)}")
    return np.frombuffer(content, kind).reshape(sizes).astype(np.dtype(name))


def decoded(kind: Any, raw: Any, where: str) -> Any:
    """The value of that annotation. Raises PlainError, which names the place, for a value of another form."""
    if kind in _PLAIN:
        return _PLAIN[kind](raw, where)
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (other,) = (one for one in of if one is not type(None))
        return None if raw is None else decoded(other, raw, where)
    if origin in (dict, Mapping):
        return {
            _text(key, where): decoded(of[1], item, f"{where}.{short(key, 40)}")
            for key, item in _of(dict, raw, where).items()
        }
    if origin is tuple and of[-1] is not Ellipsis:
        return tuple(decoded(one, item, where) for one, item in zip(of, _row(raw, len(of), where), strict=True))
    if origin in (list, tuple, Sequence):
        made = [decoded(of[0], item, f"{where}[{i}]") for i, item in enumerate(_of(list, raw, where))]
        return made if origin is list else tuple(made)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        row = _row(raw, len(hints), where)
        return kind(**{name: decoded(of, item, f"{where}.{name}") for (name, of), item in zip(hints, row, strict=True)})
    raise TypeError(f"{where}: {kind} has no plain form")


@cache
def _hints(kind: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of a dataclass and their annotations, in order."""
    found = typing.get_type_hints(kind)
    return tuple((field.name, found[field.name]) for field in fields(kind))


def _of(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, kind):
        raise PlainError(f"{where} is {short(raw, 60)}, expected a JSON {'object' if kind is dict else 'list'}")
    return raw


def _row(raw: Any, length: int, where: str) -> list[Any]:
    row: list[Any] = _of(list, raw, where)
    if len(row) != length:
        raise PlainError(f"{where} has {len(row)} values, expected {length}")
    return row


def _int(raw: Any, where: str) -> int:
    if type(raw) is not int or abs(raw) > LARGEST:
        raise PlainError(f"{where} is {short(raw, 60)}, expected a whole number up to 2**53")
    return raw


def _float(raw: Any, where: str) -> float:
    if isinstance(raw, str) and raw in WORDS:
        return WORDS[raw]
    if type(raw) is int:
        return _int(raw, where)
    if type(raw) is not float or not math.isfinite(raw):
        raise PlainError(f"{where} is {short(raw, 60)}, expected a number, or one of {', '.join(WORDS)}")
    return raw


def _text(raw: Any, where: str) -> str:
    """Lines that a terminal shows as they are."""
    if not isinstance(raw, str) or len(raw) > LONGEST or not all(line.isprintable() for line in raw.split("\n")):
        raise PlainError(f"{where} is {short(raw, 60)}, expected printable text of at most {LONGEST} characters")
    return raw


def _bool(raw: Any, where: str) -> bool:
    if not isinstance(raw, bool):
        raise PlainError(f"{where} is {short(raw, 60)}, expected true or false")
    return raw


def _any(raw: Any, where: str, left: int = NESTED) -> Any:
    """Lists and objects of texts, numbers and truths, nested a few times at most."""
    if raw is None or isinstance(raw, bool):
        return raw
    if isinstance(raw, (list, dict)) and not left:
        raise PlainError(f"{where} nests more than {NESTED} times")
    if isinstance(raw, list):
        return [_any(item, where, left - 1) for item in raw]
    if isinstance(raw, dict):
        return {_text(key, where): _any(item, where, left - 1) for key, item in raw.items()}
    return _text(raw, where) if isinstance(raw, str) else _float(raw, where)


_PLAIN: dict[Any, Callable[[Any, str], Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _text,
    Any: _any,
}
