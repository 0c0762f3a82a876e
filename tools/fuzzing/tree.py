"""Spoils JSON by its structure: numbers, types, keys, depth and amounts. What no reader should like can be written.

A document is a tree of `Pairs` (objects, whose keys may repeat), lists and plain values; `Raw` is text as it stands.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any


class Pairs(list[list[Any]]):
    """An object as a list of [key, value]."""


class Raw(str):
    """Text that is written as it is."""


NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 255, 1000, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64),
    *(0.0, -0.0, 0.5, 1.0, 1e-300, 5e-324, 1e308, -1e308),
    *map(Raw, ("NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000, "1" + "0" * 60, "01", "1.", "0x10")),
)
TEXTS = (
    *(
        "",
        " ",
        "x",
        "\0",
        "\n",
        "a\nb",
        "\x1b[2J",
        "\u202e",
        "\ud800",
        "\U0001f600",
        "é" * 300,
        "x" * 10_000,
        "*" * 900,
    ),
    *("../../etc/passwd", "/etc/passwd", "..", ".", "a/../b", "a\\b", "C:a", "~", "%s%n", "{0}", "[bold]x[/]", "[/]"),
    *("float32", "bfloat16", "float64", "torch.float16", "auto", "true", "null", "0", "BF16", "F64", "I8", "F8_E4M3"),
    *("*a*a*a*a*a*a*a*a*a*a*b", "[!", "[a-", "?" * 100, "B T D", "T B D", "valid D", "uint8"),
)
DEEP = (10, 100, 900, 990, 5000, 100_000)
MANY = (10, 100, 600, 2000, 20_000)


def parsed(data: bytes) -> Any:
    """The tree of a document that is sound."""
    return json.loads(data, object_pairs_hook=lambda pairs: Pairs([key, value] for key, value in pairs))


def text(node: Any) -> str:
    """The tree as JSON, or as nearly so as it is."""
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, Pairs):
        return "{" + ", ".join(f"{text(key)}: {text(value)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(text, node)) + "]"
    return json.dumps(node)


def plain(pairs: Pairs) -> dict[str, Any]:
    """An object of the tree as a dict: the last of repeated keys wins."""
    return {key: value for key, value in pairs if isinstance(key, str)}


def hostile(rng: Random) -> Any:
    """A value that few places expect."""
    kind = rng.randrange(12)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(TEXTS)
    if kind < 9:
        return rng.choice((None, True, False, [], Pairs(), [[]], [None], [0], Pairs([["a", 1]])))
    if kind == 9:
        return Raw("[" * (depth := rng.choice(DEEP)) + "]" * depth)
    if kind == 10:
        return Raw('{"a":' * (depth := rng.choice(DEEP)) + "1" + "}" * depth)
    value = rng.choice((0, 1, "x", None))
    return [value] * rng.choice(MANY)


def spots(node: Any) -> Iterator[tuple[list[Any], int]]:
    """(what holds it, its number) of every value of the tree."""
    if isinstance(node, list):
        for at in range(len(node)):
            yield node, at
            yield from spots(node[at][1] if isinstance(node, Pairs) else node[at])


def spoil(rng: Random, document: Any, most: int = 3) -> None:
    """One to `most` changes in place; the document is a `Pairs` or a list."""
    for _ in range(rng.randint(1, most)):
        if places := list(spots(document)):
            rng.choice(CHANGES)(rng, places, *rng.choice(places))


def spoilt(rng: Random, data: bytes, most: int = 3) -> bytes:
    """A JSON document after some changes to its structure."""
    document = parsed(data)
    spoil(rng, document, most)
    return text(document).encode()


Places = list[tuple[list[Any], int]]
Change = Callable[[Random, Places, list[Any], int], None]


def _value(holder: list[Any], at: int) -> Any:
    return holder[at][1] if isinstance(holder, Pairs) else holder[at]


def _set(holder: list[Any], at: int, value: Any) -> None:
    if isinstance(holder, Pairs):
        holder[at][1] = value
    else:
        holder[at] = value


def _replace(rng: Random, places: Places, holder: list[Any], at: int) -> None:
    _set(holder, at, hostile(rng))


def _nudge(rng: Random, places: Places, holder: list[Any], at: int) -> None:
    """A number near the one that is there, or the same in another type; another value where there is none."""
    found = _value(holder, at)
    if isinstance(found, bool) or not isinstance(found, int | float):
        _replace(rng, places, holder, at)
        return
    near = (found + 1, found - 1, -found, found * 2, found // 2, float(found), str(found), bool(found), [found])
    _set(holder, at, rng.choice(near))


def _drop(rng: Random, places: Places, holder: list[Any], at: int) -> None:
    if at < len(holder):
        del holder[at]


def _twice(rng: Random, places: Places, holder: list[Any], at: int) -> None:
    again = copy.deepcopy(holder[at])
    if isinstance(holder, Pairs) and rng.random() < 0.7:  # one of the same kind; else the same key once more
        again[0] = f"{again[0]}{rng.randrange(100)}"
    holder.insert(at, again)


def _rename(rng: Random, places: Places, holder: list[Any], at: int) -> None:
    if isinstance(holder, Pairs):
        others = [other[n][0] for other, n in places if isinstance(other, Pairs) and n < len(other)]
        holder[at][0] = rng.choice((rng.choice(TEXTS), rng.choice(others), f"{holder[at][0]}x", f"{holder[at][0]}1"))


def _swap(rng: Random, places: Places, holder: list[Any], at: int) -> None:
    other, n = rng.choice(places)
    mine, yours = copy.deepcopy(_value(holder, at)), copy.deepcopy(_value(other, n))
    _set(other, n, mine)
    _set(holder, at, yours)


def _wrap(rng: Random, places: Places, holder: list[Any], at: int) -> None:
    found = _value(holder, at)
    _set(holder, at, rng.choice(([found], Pairs([["a", found]]), text(found))))


def _many(rng: Random, places: Places, holder: list[Any], at: int) -> None:
    """Very many entries beside this one; of an object, each under a name of its own."""
    count, found = rng.choice(MANY), _value(holder, at)
    if len(text(found)) * count > 1 << 21:
        return
    kept = Raw(text(found))
    holder += [[f"{rng.choice('abx')}{n}", kept] for n in range(count)] if isinstance(holder, Pairs) else [kept] * count


CHANGES: tuple[Change, ...] = (
    _replace,
    _replace,
    _replace,
    _nudge,
    _nudge,
    _drop,
    _twice,
    _rename,
    _swap,
    _wrap,
    _many,
)
