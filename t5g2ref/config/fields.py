"""Typed access to the objects of a `config.json`, whose every refusal names the field by its dotted path."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5g2ref.files import opened

MAX_BYTES = 1 << 20
MAX_SIZE = (1 << 31) - 1
MAX_LAYERS = 1000  # of a stack; the releases have at most 34, and names are made for each
ABSENT: Any = object()


class _Shown(reprlib.Repr):
    """`reprlib`'s, which also shows an integer of more digits than Python writes: TOML can spell one in base 16."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1 << 13 else f"an integer of {x.bit_length()} bits"


_SHOWN = _Shown()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxlong = 4, 200, 120
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = _SHOWN.maxset = 40


class ConfigError(ValueError):
    """A configuration that cannot be computed: names the field, the value found and what to do."""


def refuse(field: str, found: object, expected: str, remedy: str) -> ConfigError:
    """Return the error for one field; `field` is its full dotted path in config.json."""
    return ConfigError(f"{short(field)[1:-1]} is {short(found, 80)}, expected {expected}; {remedy}")


def positive(value: object) -> bool:
    """Whether it is a finite number above 0, and neither true nor a text."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def short(value: object, most: int = 120) -> str:
    """`repr` cut to a line's worth. What a file says may be of any length and depth, which plain `repr` walks whole."""
    text = _SHOWN.repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


@dataclass(frozen=True)
class Section:
    """One JSON object of the file and its dotted path; the accessors check the type and nothing else."""

    raw: Mapping[str, Any]
    where: str

    def path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def has(self, name: str) -> bool:
        """True where the field is there and not null: transformers writes null for what is unset."""
        return self.raw.get(name) is not None

    def section(self, name: str) -> Section:
        value = self._value(name, ABSENT, "a JSON object")
        if not isinstance(value, Mapping):
            raise refuse(self.path(name), value, "a JSON object", "give the nested part of the released config")
        return Section(value, self.path(name))

    def integer(self, name: str, default: int = ABSENT) -> int:
        value = self._value(name, default, "an integer")
        if type(value) is not int or abs(value) > MAX_SIZE:  # bool is an int to isinstance
            raise refuse(self.path(name), value, "an integer below 2**31", "write one plain JSON integer")
        return value

    def number(self, name: str, default: float = ABSENT) -> float:
        value = self._value(name, default, "a number")
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:  # false for NaN as well
            raise refuse(self.path(name), value, "a finite number", "write one plain JSON number")
        return float(value)

    def fixed(self, name: str, only: object, remedy: str) -> None:
        """Refuse the field where it is present with another value than the one that is implemented."""
        if name in self.raw and (self.raw[name] != only or type(self.raw[name]) is not type(only)):
            raise refuse(self.path(name), self.raw[name], repr(only), remedy)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        value = self.raw.get(name)
        if value is not None and value not in allowed:
            raise refuse(self.path(name), value, "null or one of " + ", ".join(allowed), "use one of these")
        return value

    def _value(self, name: str, default: Any, expected: str) -> Any:
        value = self.raw.get(name, default)
        if value is ABSENT:
            raise ConfigError(f"{self.path(name)} is missing, expected {expected}; add it to config.json")
        return value


def from_json(data: bytes) -> Any:
    """The value of a JSON text from outside; ValueError where it is none, nests too deep or repeats a key."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def json_file(path: Path, most: int) -> Any:
    """The value of a JSON file from outside, of `most` bytes at most; ValueError says in a line what is wrong."""
    with opened(path) as handle:
        data = handle.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most} bytes")
    try:
        return from_json(data)
    except ValueError as error:
        raise ValueError(f"not JSON: {short(str(error))[1:-1]}") from error


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """`json`'s object_pairs_hook, with a ValueError for a repeated key: readers differ in which one wins."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {short(key)} appears twice in one object")
        out[key] = value
    return out


def read_file(path: str | Path) -> dict[str, Any]:
    """The JSON object of a config.json, by its path, its folder's, or that of weights beside it; else ConfigError."""
    file = Path(path)
    file = file.parent if file.suffix == ".safetensors" and file.is_file() else file
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; give a checkpoint folder or the path of its config.json")
    try:
        raw = json_file(file, MAX_BYTES)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}; download config.json again") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: holds a JSON {type(raw).__name__}, expected an object; download it again")
    return raw
