"""Texts of every kind that a tokenizer can be asked about, drawn by a seed."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

from processing.scripts import CODE, EMOJI, SCRIPTS, drawn, word

JOINER, VARIATION = "\u200d", "\ufe0f"
CONTROLS = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\u200b\u200e\u200f\u202a\u202e\u2066\ufeff\ufffd"]
BLANKS = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "▁"]
MARKS = ["<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<unused7>", "<table>"]
MARKS += ["</td>", "<0x41>", "[multimodal]", "<end_of_image>", "< bos>", "<BOS>"]


def words(rng: random.Random, name: str, count: int = 30) -> str:
    """Words of one script."""
    return " ".join(word(rng, name) for _ in range(count))


def emoji(rng: random.Random) -> str:
    """Pictures, joined ones, skin tones, flags and key caps."""
    skin, flags = [chr(0x1F3FB + n) for n in range(5)], [chr(0x1F1E6 + n) for n in range(26)]
    made = []
    for _ in range(30):
        one = rng.choice(EMOJI)
        joined = one + JOINER + rng.choice(EMOJI) + VARIATION
        made.append(rng.choice([one, joined, one + rng.choice(skin), "".join(rng.sample(flags, 2)), "7\ufe0f\u20e3"]))
    return rng.choice(["", " "]).join(made)


def code(rng: random.Random) -> str:
    """Lines that are indented by blanks or tabs."""
    indent = rng.choice(["    ", "  ", "\t"])
    body = ["".join(rng.choice([drawn(rng, "latin"), rng.choice(CODE), " "]) for _ in range(40)) for _ in range(8)]
    return "\n".join(indent * rng.randint(0, 5) + line for line in body) + "\n" * rng.randint(0, 40)


def controls(rng: random.Random) -> str:
    return "".join(rng.choice([rng.choice(CONTROLS), drawn(rng, "latin")]) for _ in range(60))


def blanks(rng: random.Random) -> str:
    return "".join(rng.choice(BLANKS) * rng.randint(1, 70) + rng.choice(["", "a", "é"]) for _ in range(12))


def long_word(rng: random.Random) -> str:
    """One word of up to thirty thousand characters."""
    name, count = rng.choice(list(SCRIPTS)), rng.choice([500, 5000, 30_000])
    if rng.random() < 0.3:
        return drawn(rng, name) * count
    return "".join(drawn(rng, name) for _ in range(count))


def marks(rng: random.Random) -> str:
    """Special tokens that are written out, and what looks like them."""
    return rng.choice(["", " "]).join(rng.choice([rng.choice(MARKS), words(rng, "latin", 1)]) for _ in range(20))


def anything(rng: random.Random) -> str:
    """Code points from everywhere but surrogates, assigned or not, in any normal form."""
    points = [rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]) for _ in range(60)]
    return unicodedata.normalize(rng.choice(["NFC", "NFD", "NFKC", "NFKD"]), "".join(map(chr, points)))


def mixed(rng: random.Random) -> str:
    return "".join(rng.choice([emoji, code, controls, marks, anything])(rng)[:40] for _ in range(6))


KINDS: dict[str, Callable[[random.Random], str]] = {
    **{name: (lambda rng, name=name: words(rng, name)) for name in SCRIPTS},  # type: ignore[misc]
    "emoji": emoji,
    "code": code,
    "control characters": controls,
    "runs of blanks": blanks,
    "very long words": long_word,
    "special tokens": marks,
    "any code point": anything,
    "mixed": mixed,
}


def text(seed: int) -> tuple[str, str]:
    """(kind, text) number `seed`; the kinds take turns."""
    kind = list(KINDS)[seed % len(KINDS)]
    return kind, KINDS[kind](random.Random(f"text {seed}"))
