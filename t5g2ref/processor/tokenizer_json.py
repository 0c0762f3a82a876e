"""Whether a tokenizer.json is one of Gemma's make, found out without the library that will read it.

That library panics, or takes all memory, on regular expressions and normalisers that no Gemma tokenizer has. So a file
with any is refused before it is handed over. Gemma has a BPE model, and plain strings that are replaced by no longer
ones. The vocabulary is stepped over: of everything else there is at most a MiB or two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from t5g2ref.config.fields import from_json, short

MAX_KEYS, MAX_MARKS = 64, 100_000  # of the two upper levels; and brackets, commas and strings on the way
MAX_PART, MAX_ADDED = 1 << 16, 1 << 23  # bytes; Gemma 3's 6415 added tokens have one MiB
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+){0,65535}"'  # no possessive groups: Python before 3.11.5 has them wrong
_MARK = re.compile(_STRING + rb'|["{}\[\],:]', re.DOTALL)
_FLAT = rb'(?:[^"{}\[\]]++|' + _STRING + rb"){0,16}"
_DEEP = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb"|\[" + _FLAT + rb"\]|\{" + _FLAT + rb"\}){1,4096}", re.DOTALL)
"""A piece of a vocabulary, or of the pairs that are merged, that has no further depth: stepped over at once."""
_TYPES = {
    "normalizer": ("Replace", "Prepend", "Sequence"),
    "pre_tokenizer": ("Split", "Sequence"),
    "post_processor": ("TemplateProcessing",),
    "decoder": ("Replace", "ByteFallback", "Fuse", "Strip", "Sequence"),
}
_INNER = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
_MOST = 8  # steps of a sequence


class ForeignTokenizer(ValueError):
    """No tokenizer of Gemma's make: says which part, what was expected and what was found."""


def check(data: bytes) -> None:
    """ForeignTokenizer unless every part of the file is one that a Gemma tokenizer has."""
    spans = _spans(data)
    for part in _TYPES:
        for step in _steps(_value(data, spans, part, MAX_PART), part):
            _check_step(step, part)
    if not isinstance(_value(data, spans, "added_tokens", MAX_ADDED) or [], list):
        raise ForeignTokenizer("added_tokens are no list")
    if (kind := _value(data, spans, "model.type", MAX_PART)) != "BPE":
        raise ForeignTokenizer(f"model.type is {short(kind)}, expected 'BPE'")


def _spans(data: bytes) -> dict[str, slice]:
    """Where the values of the top level, and of its model, are; by `key` and `model.key`."""
    found: dict[str, slice] = {}
    path: list[str] = []
    keys: list[tuple[str, int]] = []  # of the objects that are open at depths 1 and 2: key, and where its value begins
    depth, last, at, marks = 0, "", 0, 0
    while mark := _MARK.search(data, at):
        at, marks = mark.end(), marks + 1
        if marks > MAX_MARKS:
            raise ForeignTokenizer(f"it is nested or strewn beyond {MAX_MARKS} brackets and commas")
        sign = data[mark.start() : mark.start() + 1]
        if mark[0] == b'"':
            raise ForeignTokenizer("a string has no end")
        if sign == b'"':
            last = _text(mark[0]) if depth <= 2 else ""
        elif sign == b":" and depth in (1, 2):
            del keys[depth - 1 :]
            keys.append((last, mark.end()))
        elif sign in b"{[":
            depth += 1
            inner = depth > 2 or (depth == 2 and keys[:1] and keys[0][0] != "model")
            while inner and (deep := _DEEP.match(data, at)):
                at = deep.end()
        if sign in (b",", b"}", b"]"):
            if depth in (1, 2) and len(keys) >= depth:
                path = [key for key, _ in keys[:depth]]
                name, value = ".".join(path), slice(keys[depth - 1][1], mark.start())
                if depth == 1 or path[0] == "model":
                    if name in found or len(found) > MAX_KEYS or ("." in name) is not (depth == 2):
                        raise ForeignTokenizer(f"the key {short(name)} is there twice, or is no tokenizer's")
                    found[name] = value
                del keys[depth - 1 :]
            depth -= sign != b","
    return found


def _text(raw: bytes) -> str:
    """A string of the file as a reader of JSON has it: escapes can spell any key."""
    if len(raw) > MAX_PART:
        raise ForeignTokenizer(f"a string has {len(raw)} bytes, expected at most {MAX_PART}")
    try:
        return str(from_json(raw))
    except ValueError as error:
        raise ForeignTokenizer(f"a string is not JSON: {short(str(error))[1:-1]}") from error


def _value(data: bytes, spans: dict[str, slice], name: str, most: int) -> Any:
    """The parsed value, None where there is none."""
    if name not in spans:
        return None
    text = data[spans[name]]
    if len(text) > most:
        raise ForeignTokenizer(f"{name} has {len(text)} bytes, expected at most {most}")
    try:
        return from_json(text)
    except ValueError as error:
        raise ForeignTokenizer(f"{name} is not JSON: {short(str(error))[1:-1]}") from error


def _steps(value: Any, part: str) -> Iterator[dict[str, Any]]:
    """The part itself, or the steps that it is a sequence of."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise ForeignTokenizer(f"{part} is {short(value)}, expected an object")
    steps = value.get(_INNER.get(part, "")) if value.get("type") == "Sequence" else [value]
    if not isinstance(steps, list) or len(steps) > _MOST or not all(isinstance(step, dict) for step in steps):
        raise ForeignTokenizer(f"{part} is {short(value)}, expected at most {_MOST} steps")
    yield from steps


def _check_step(step: dict[str, Any], part: str) -> None:
    kind, allowed = step.get("type"), _TYPES[part]
    if not isinstance(kind, str) or kind not in allowed or (kind == "Sequence"):
        raise ForeignTokenizer(f"{part} has {short(kind)}, expected one of {', '.join(allowed)}")
    if kind in ("Replace", "Split"):
        pattern = step.get("pattern")
        plain = pattern.get("String") if isinstance(pattern, dict) and len(pattern) == 1 else None
        if not isinstance(plain, str) or not plain:
            raise ForeignTokenizer(f"{part} has the pattern {short(pattern)}, expected a plain String")
        content = step.get("content", "")
        if not isinstance(content, str) or len(content) > len(plain):
            raise ForeignTokenizer(f"{part} puts {short(content)} for {short(plain)}, expected nothing longer")
    if kind == "Prepend" and len(str(step.get("prepend", ""))) > 1:
        raise ForeignTokenizer(f"{part} prepends {short(step['prepend'])}, expected one character")
