"""A tokenizer of Gemma's size and make: 262 144 pieces, byte fallback, blanks replaced, special ids in their places.

The pieces are drawn, not trained: characters of many scripts, words of lexicons, pairs of earlier pieces. As in Gemma's
file, every way to put a piece together from two others is a merge, in the order of the pieces.
"""

from __future__ import annotations

import json
import random
from itertools import accumulate
from pathlib import Path
from typing import Any

from processing.scripts import CHARACTERS, drawn, lexicon

SIZE, SMALL = 262_144, 16_384
BOI, EOI, IMAGE = 255_999, 256_000, 256_001
TAGS = ("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "ul", "ol", "li", "p", "b", "i", "u", "s")
HTML = [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
LONGEST = 16  # characters of a piece


def head() -> list[str]:
    """The first pieces, as Gemma has them: special tokens, unused ones, runs of line ends and blanks, tags, bytes."""
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", *(f"<unused{n}>" for n in range(99))]
    runs = [*("\n" * n for n in range(1, 32)), *("▁" * n for n in range(2, 32))]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    return [*first, *turns, *runs, *HTML, *(f"<0x{byte:02X}>" for byte in range(256))]


def pieces(seed: int, size: int) -> list[str]:
    """All pieces in the order of their ids, as many as `size`."""
    rng = random.Random(seed)
    scale = size / SIZE
    boi = round(BOI * scale)
    found = dict.fromkeys([*head(), "▁"])
    for characters in CHARACTERS.values():
        found |= dict.fromkeys(characters[: max(40, int(len(characters) * scale))])
    pools = {name: ["▁"] for name in CHARACTERS}
    for rank in range(round(1000 * scale)):  # words grow from the left
        for name in CHARACTERS:
            for begun in accumulate("▁" + lexicon(name)[rank]):
                found |= dict.fromkeys([begun, begun.lstrip("▁") or "▁"])
    while len(found) < boi:
        name = rng.choice(list(CHARACTERS))
        pool = pools[name]
        left = rng.choice(pool) if rng.random() < 0.7 else drawn(rng, name)
        piece = left + (drawn(rng, name) if rng.random() < 0.8 else rng.choice(pool).lstrip("▁"))
        if len(piece) <= LONGEST and piece not in found and (left in found or left == "▁"):
            found[piece] = None
            pool.append(piece)
    tail = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    unused = [f"<unused{n}>" for n in range(99, 99 + size - boi - len(tail))]
    return [*found, *tail, *unused]


def merges(all_pieces: list[str]) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, in the order of the pieces; none of special ones."""
    known = set(all_pieces)
    plain = [one for one in all_pieces if not (one[0] in "<[" and one[-1] in ">]")]
    return [
        (piece[:at], piece[at:])
        for piece in plain
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]


def added(all_pieces: list[str]) -> list[dict[str, Any]]:
    """The added tokens: special are those a decoder leaves out, the others are cut out of a text as they stand."""
    special = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"}
    special |= {"<start_of_image>", "<end_of_image>", "<image_soft_token>"}
    runs = {*("\n" * n for n in range(1, 32)), *("▁" * n for n in range(2, 32)), "[multimodal]", *HTML}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": piece, **flags, "special": piece in special}
        for index, piece in enumerate(all_pieces)
        if piece in special or piece in runs or piece.startswith("<unused")
    ]


def layout(seed: int = 0, size: int = SIZE) -> dict[str, Any]:
    """The tokenizer.json."""
    every = pieces(seed, size)
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB")]
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    template = {"type": "TemplateProcessing", "single": [bos, text[0]], "pair": [bos, text[0], bos, text[1]]}
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    model |= {"ignore_merges": False, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"vocab": {piece: index for index, piece in enumerate(every)}, "merges": merges(every)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(every),
        "normalizer": replaced,
        "pre_tokenizer": split,
        "model": model,
        "post_processor": template | {"special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}},
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    }


def write(folder: Path, seed: int = 0, size: int = SIZE, **settings: Any) -> Path:
    """Put tokenizer.json and tokenizer_config.json into the folder; settings go into the second."""
    made = layout(seed, size)
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    texts = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")}
    decoder = {str(one["id"]): {k: v for k, v in one.items() if k != "id"} for one in made["added_tokens"]}
    config = {"tokenizer_class": "GemmaTokenizer", "processor_class": "Gemma3Processor", **texts, **names}
    config |= {"extra_special_tokens": names, "added_tokens_decoder": decoder, "model_max_length": 10**30, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
