"""What a checkpoint's tokenizer_config.json says of its tokens: names, padding, lengths and further tokens.

The file may be missing; Gemma 3's values stand in. Settings that tokenizer.json has as well count there.
Source: transformers' `TokenizersBackend` and `PreTrainedTokenizerBase._from_pretrained`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5g2ref.config.fields import Section, refuse
from t5g2ref.processor.settings import section

MAX_ADDED = 100_000
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Marks:
    """What tokenizer_config.json says.

    Args:
        boi, image, eoi, bos: the tokens' texts.
        pad: the padding token's text, or None.
        side: "left" or "right", where rows are padded, or None where the file does not say.
        longest: most ids of a row, or None.
        named: the special tokens that the file names, each once.
        added: (id, text, flags) of further tokens, in the order of their ids.
    """

    boi: str = "<start_of_image>"
    image: str = "<image_soft_token>"
    eoi: str = "<end_of_image>"
    bos: str = "<bos>"
    pad: str | None = None
    side: str | None = None
    longest: int | None = None
    named: tuple[str, ...] = ()
    added: tuple[tuple[int, str, tuple[tuple[str, bool], ...]], ...] = ()


DEFAULTS = Marks()


def read_marks(folder: Path) -> Marks:
    """What tokenizer_config.json says; the defaults without one."""
    raw = section(folder, "tokenizer_config.json")
    extra = raw.raw.get("extra_special_tokens")
    names = {"boi": "boi_token", "image": "image_token", "eoi": "eoi_token", "bos": "bos_token", "pad": "pad_token"}
    texts: dict[str, Any] = {}
    for key, name in names.items():
        found = [raw.raw.get(name), extra.get(name) if isinstance(extra, dict) else None]
        said = [_token(raw.path(name), one) for one in found if one is not None]
        if len(set(said)) > 1:
            raise refuse(raw.path(name), said[0], f"{said[1]!r}, as in extra_special_tokens", "make the two agree")
        texts |= {key: said[0]} if said else {}
    return Marks(**texts, side=_padding(raw), longest=_longest(raw), named=_named(raw), added=_added(raw))


def _token(name: str, value: object) -> str:
    """The text of a token, which older files write as an object with its flags."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not 1 <= len(text) <= 200:
        raise refuse(name, value, "a token of 1 to 200 characters", "give the token's text")
    return text


def _padding(raw: Section) -> str | None:
    """Where the file says to pad. Gemma's own class pads on the left, any other of transformers on the right."""
    if "padding_side" in raw.raw:
        if raw.raw["padding_side"] not in ("left", "right"):
            raise refuse(raw.path("padding_side"), raw.raw["padding_side"], "'left' or 'right'", "use one of these")
        return str(raw.raw["padding_side"])
    kind = raw.raw.get("tokenizer_class")
    return None if kind is None or "Gemma" in str(kind) else "right"


def _longest(raw: Section) -> int | None:
    """The file's `model_max_length`; None for the 10^30 that transformers writes for no limit."""
    value = raw.raw.get("model_max_length")
    if value is not None and (type(value) not in (int, float) or not value >= 1):
        raise refuse(raw.path("model_max_length"), value, "an integer of at least 1", "write one plain JSON integer")
    return None if value is None or value > 1 << 31 else int(value)


def _added(raw: Section) -> tuple[Any, ...]:
    given = raw.raw.get("added_tokens_decoder") or {}
    field = raw.path("added_tokens_decoder")
    if not isinstance(given, dict) or len(given) > MAX_ADDED:
        raise refuse(field, given, f"an object of at most {MAX_ADDED} tokens", "give the checkpoint's")
    found = []
    for index, token in given.items():
        if not index.isascii() or not index.isdigit() or len(index) > 9 or not isinstance(token, dict):
            raise refuse(f"{field}.{index}"[:99], token, "a token by its id", "give the checkpoint's")
        flags = tuple((name, token.get(name, name == "normalized" and not token.get("special"))) for name in _FLAGS)
        if not all(type(flag) is bool for _, flag in flags):
            raise refuse(f"{field}.{index}", token, "flags that are true or false", "give the checkpoint's")
        found.append((int(index), _token(f"{field}.{index}", token), flags))
    return tuple(sorted(found))


def _named(raw: Section) -> tuple[str, ...]:
    """The texts of the special tokens, in the order in which transformers adds those that are missing."""
    said = [(name, raw.raw[name]) for name in _NAMED if raw.has(name)]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = raw.raw.get(name) or []
        if not isinstance(more, dict | list) or len(more) > MAX_ADDED:
            raise refuse(raw.path(name), more, f"a list or object of at most {MAX_ADDED} tokens", "give tokens alone")
        said += [(name, one) for one in (more.values() if isinstance(more, dict) else more)]
    return tuple(dict.fromkeys(_token(raw.path(name), one) for name, one in said))
