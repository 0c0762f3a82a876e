"""Reads a dump's manifest.json, which is untrusted: checks every entry, and names what is wrong by its path."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from conformance.cases.abilities import ABILITIES
from conformance.exchange.geometry import Value
from conformance.exchange.reading import DumpError, confined
from conformance.oracle.quantised import FORM, SchemeError, parse
from t5g2ref.config.fields import json_file, short
from t5g2ref.dtypes import HALF, RUN_IN

FORMAT, VERSION = "t5g2ref-dump", 1
MAX_BYTES = 1 << 23
MOST_CASES = 1000
MOST = 10_000  # entries of an object: some more than the taps of the largest release
STORED = ("uint8", "float32")
LONGEST = 64
FIELDS = {
    "format",
    "version",
    "peer",
    "checkpoint",
    "layouts",
    "stored",
    "types",
    "lacks",
    "quantised",
    "cases",
    "skipped",
}


@dataclass(frozen=True)
class Declared:
    """What a program says of itself and of its arrays.

    Args:
        name, dtype, versions: those of the program.
        layouts: tap or glob → axes in letters; a tap without an entry has the table's.
        stored: tap or glob → "uint8" for a mask of 0 and 1, "float32" for values of a half type.
        types: tap or glob → "float32", where a program in a half type is wider on purpose.
        lacks: what it cannot do, in words of `cases.abilities`.
        quantised: how its linear layers are rounded, as `oracle.quantised.FORM` has it; "" for not at all.
    """

    name: str
    dtype: str
    versions: dict[str, str] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    quantised: str = ""
    types: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """One call: its file, and tap → tensor in it. None: each tensor is called as its tap is."""

    file: str
    taps: dict[str, str] | None = None


@dataclass(frozen=True)
class Manifest:
    """A dump's manifest.

    Args:
        checkpoint: its name.
        cases: case → its calls.
        fingerprint: of its weights, as `case_words` makes it; "" for none.
        config: its fields, as `geometry` names them; None where the manifest has none.
        skipped: a case that was left out → why.
    """

    peer: Declared
    checkpoint: str
    cases: dict[str, list[Shown]]
    fingerprint: str = ""
    config: dict[str, Value] | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def read(folder: Path) -> Manifest:
    """The manifest of a dump folder. Raises DumpError, which says what is wrong with it."""
    if not folder.is_dir():
        raise DumpError("no such folder")
    raw = _object(_json(confined(folder, "manifest.json")), "manifest.json")
    if raw.get("format") != FORMAT:
        hint = "; this is what `export` wrote, not a dump" if raw.get("format") == "t5g2ref-export" else ""
        _refuse("format", raw.get("format"), repr(FORMAT) + hint)
    if type(raw.get("version")) is not int or raw["version"] != VERSION:
        _refuse("version", raw.get("version"), f"{VERSION}, the one that this t5g2ref reads")
    _known(raw, FIELDS, "manifest.json")
    name, mark, config = _checkpoint(raw.get("checkpoint"))
    named = _object(raw.get("cases"), "cases")
    if len(named) > MOST_CASES:
        raise DumpError(f"cases has {len(named)} entries, expected at most {MOST_CASES}")
    cases = {_text(case, "cases"): _calls(value, f"cases.{case}") for case, value in named.items()}
    if not cases:
        _refuse("cases", {}, "at least one case")
    skipped = _texts(raw.get("skipped", {}), "skipped")
    if both := sorted(set(skipped) & set(cases)):
        raise DumpError(f"skipped has case {short(both[0])}, which cases has too; expected it in one of them")
    return Manifest(declared(raw), name, cases, mark, config, skipped)


def declared(raw: dict[str, Any], peer: object = None) -> Declared:
    """The program's words about itself: `peer` (else raw["peer"]), with raw's layouts, stored, types, lacks
    and quantised."""
    said = _object(raw.get("peer") if peer is None else peer, "peer")
    name, dtype = _text(said.get("name"), "peer.name"), said.get("dtype")
    if not name.strip():
        _refuse("peer.name", name, "a name that can be seen")
    if len(name) > LONGEST:
        _refuse("peer.name", name, f"at most {LONGEST} characters: it heads a column")
    if dtype not in RUN_IN:
        _refuse("peer.dtype", dtype, f"one of {', '.join(RUN_IN)}")
    stored = _texts(raw.get("stored", {}), "stored")
    for tap, kind in stored.items():
        if kind not in STORED:
            _refuse(f"stored.{tap}", kind, f"one of {', '.join(STORED)}")
    types = _texts(raw.get("types", {}), "types")
    for tap, kind in types.items():
        if dtype not in HALF or kind != "float32":
            _refuse(f"types.{tap}", kind, "float32, of a program whose peer.dtype is a half type")
    versions = _texts(said.get("versions", {}), "peer.versions")
    layouts = _texts(raw.get("layouts", {}), "layouts", empty=True)
    lacks, quantised = _lacks(raw.get("lacks", [])), _quantised(raw.get("quantised", ""))
    return Declared(name, dtype, versions, layouts, stored, lacks, quantised, types)


def _lacks(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word in ABILITIES for word in value):
        _refuse("lacks", value, f"a list of words among {', '.join(ABILITIES)}")
    return tuple(value)


def _quantised(value: object) -> str:
    if value == "":
        return ""
    try:
        return parse(value).name
    except SchemeError:
        _refuse("quantised", value, FORM)


def _checkpoint(value: object) -> tuple[str, str, dict[str, Value] | None]:
    """The checkpoint's name, its fingerprint or "", and the fields of its configuration or None."""
    if not isinstance(value, dict):
        return _text(value, "checkpoint"), "", None
    mark, config = value.get("fingerprint", ""), value.get("config")
    name = _text(value.get("name"), "checkpoint.name")
    return name, _text(mark, "checkpoint.fingerprint") if mark else "", None if config is None else _config(config)


def _config(value: object) -> dict[str, Value]:
    where = "checkpoint.config"
    for name, item in _few(value, where).items():
        if isinstance(item, str):
            _text(item, f"{where}.{name}")
        elif item is not None and not isinstance(item, int | float):
            _refuse(f"{where}.{name}", item, "a number, a line of text, true, false or null")
    return {_text(name, where): item for name, item in _few(value, where).items()}


def _calls(value: object, where: str) -> list[Shown]:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_CASES:
        _refuse(where, value, "a list with an object for each call")
    out = []
    for i, item in enumerate(value):
        call, at = _object(item, f"{where}[{i}]"), f"{where}[{i}]"
        _known(call, {"file", "taps"}, at)
        out.append(Shown(_text(call.get("file"), f"{at}.file"), _taps(call.get("taps"), f"{at}.taps")))
    return out


def _taps(value: object, where: str) -> dict[str, str] | None:
    """{tap: tensor}; a list has names that are both. None stands for everything that the file holds."""
    if isinstance(value, list):
        if len(value) > MOST:
            raise DumpError(f"{where} has {len(value)} entries, expected at most {MOST}")
        names = [_text(name, where) for name in value]
        if len(set(names)) < len(names):
            _refuse(where, value, "each tap once")
        return {name: name for name in names}
    return None if value is None else _texts(value, where)


def _json(path: Path) -> Any:
    try:
        return json_file(path, MAX_BYTES)
    except ValueError as error:  # json names line and column
        raise DumpError(f"manifest.json: {error}") from error


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, value, "an object")
    return value


def _known(raw: dict[str, Any], fields: set[str], where: str) -> None:
    if extra := sorted(set(raw) - fields):
        raise DumpError(f"{where} has a field {short(extra[0])}, expected only {', '.join(sorted(fields))}")


def _few(value: object, where: str) -> dict[str, Any]:
    """The object, of no more entries than may be looked at."""
    found = _object(value, where)
    if len(found) > MOST:
        raise DumpError(f"{short(where)[1:-1]} has {len(found)} entries, expected at most {MOST}")
    return found


def _texts(value: object, where: str, *, empty: bool = False) -> dict[str, str]:
    return {
        _text(key, where): item if empty and item == "" else _text(item, f"{where}.{key}")
        for key, item in _few(value, where).items()
    }


def _text(value: object, where: str) -> str:
    """A line that a terminal shows as it is."""
    if not isinstance(value, str) or not 0 < len(value) <= 1024 or not value.isprintable():
        _refuse(where, value, "a line of printable text")
    return value


def _refuse(where: str, found: object, expected: str) -> NoReturn:
    raise DumpError(f"{short(where)[1:-1]} is {short(found)}, expected {expected}")
