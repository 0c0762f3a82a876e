"""Names of tokens, short and with nothing invisible in them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

LONGEST = 18
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def visible(text: str, keep: str = "") -> str:
    """Text with its invisible characters spelled out, as \\u202e, so that what is read is what is there."""
    return "".join(c if c in keep or unicodedata.category(c) not in _UNSEEN else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return named.get(character, f"\\u{ord(character):04x}")


def named(ids: Iterable[int], tokenizer: Any, image_id: int = -1, tokens_per_image: int = 1) -> list[str]:
    """What each id is called: the tokenizer's piece with ␣ for its space, or its number.

    A picture's tokens are called after their picture: the first of the first picture is "img 1.0".

    Args:
        tokenizer: None gives numbers.
        image_id: the id of the tokens that pictures take, or -1 where there are none.
    """
    found, pictures = [], 0
    for token in ids:
        if token == image_id:
            found.append(f"img {pictures // tokens_per_image + 1}.{pictures % tokens_per_image}")
            pictures += 1
            continue
        piece = None if tokenizer is None else tokenizer.backend.id_to_token(token)
        text = visible(str(token) if piece is None else piece.replace("\u2581", "␣"))
        found.append(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")
    return found
