"""The scripts that texts and pieces are drawn from; early characters of each come often, as letters do."""

from __future__ import annotations

import random
import unicodedata
from functools import cache


def _range(first: int, last: int) -> str:
    """The assigned characters of a range."""
    return "".join(char for char in map(chr, range(first, last + 1)) if unicodedata.category(char)[0] not in "CZ")


SCRIPTS = {
    "latin": "etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLU" + _range(0xC0, 0x17F) + _range(0x1E00, 0x1EFF),
    "greek": _range(0x3B1, 0x3C9) + _range(0x370, 0x3FF) + _range(0x1F00, 0x1FFF),
    "cyrillic": _range(0x430, 0x44F) + _range(0x400, 0x52F),
    "armenian": _range(0x531, 0x58A),
    "hebrew": _range(0x5D0, 0x5EA) + _range(0x591, 0x5C7),
    "arabic": _range(0x627, 0x64A) + _range(0x64B, 0x6FF),
    "devanagari": _range(0x900, 0x97F),
    "bengali": _range(0x980, 0x9FE),
    "tamil": _range(0xB82, 0xBFA),
    "thai": _range(0xE01, 0xE5B),
    "georgian": _range(0x10D0, 0x10FF),
    "hangul": _range(0xAC00, 0xD7A3),
    "kana": _range(0x3041, 0x3096) + _range(0x30A1, 0x30FA),
    "han": _range(0x4E00, 0x9FFF),
}
"""Fourteen of them. Not all their characters are pieces: the others fall back to bytes."""
CODE = "()[]{};:,.=+-*/<>!&|^%#@\"'`~$?\\_0123456789"
EMOJI = _range(0x1F600, 0x1F64F) + _range(0x1F300, 0x1F5FF) + _range(0x1F680, 0x1F6FF) + _range(0x1F900, 0x1F9FF)
CHARACTERS = {**SCRIPTS, "code": CODE + SCRIPTS["latin"][:26], "emoji": EMOJI}


def drawn(rng: random.Random, name: str) -> str:
    """One character; the earlier, the likelier."""
    characters = CHARACTERS[name]
    return characters[int(len(characters) ** rng.random()) - 1]


@cache
def lexicon(name: str) -> tuple[str, ...]:
    """Words of a script, the same always."""
    rng = random.Random(f"lexicon {name}")
    return tuple("".join(drawn(rng, name) for _ in range(rng.randint(2, 12))) for _ in range(1000))


def word(rng: random.Random, name: str) -> str:
    """A word of the lexicon, the earlier the likelier, or one that nobody knows."""
    if rng.random() < 0.7:
        return lexicon(name)[int(1000 ** rng.random()) - 1]
    return "".join(drawn(rng, name) for _ in range(rng.randint(1, 12)))
