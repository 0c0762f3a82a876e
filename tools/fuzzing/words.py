"""The class `tokenizer`: a tokenizer.json of Gemma's make, read, and used where it is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import lawful, raw, tree
from fuzzing.tries import Kind
from t5g2ref.processor.text import Tokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
WORDS = ["▁", "a", "b", "c", "\n", "\n\n", "▁a", "ab", "<0x41>", "<0xE2>"]
TEXTS = ("", "a b c", "abab  ab\n\n\nA", "<bos>a<start_of_image>", "é \U0001f600 \0", "a" * 2000)
KINDS = ("Replace", "Prepend", "Sequence", "Split", "TemplateProcessing", "ByteFallback", "Fuse", "Strip", "BPE", "NFC")
PATTERNS = ("(a|aa)+$", "[a-z]{99999}", ".*", "(?<x>a)\\k<x>", "\\p{L}+", "", "(", "a" * 5000)


def document() -> dict[str, Any]:
    """A small tokenizer with every part that Gemma's has."""
    added = [{"id": n, "content": name, "special": True} for n, name in enumerate(SPECIAL)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    bos = {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}
    single = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": bos}
    vocabulary = {word: n for n, word in enumerate(SPECIAL + WORDS)}
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [entry | flags for entry in added],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": template,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": model | {"vocab": vocabulary, "merges": [["▁", "a"], ["a", "b"], ["\n", "\n"]]},
    }


def base(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(document()))


def spoil(rng: Random, base: Path, folder: Path) -> None:
    data = (base / "tokenizer.json").read_bytes()
    how = rng.random()
    if how < 0.8:
        root = tree.parsed(data)
        for _ in range(rng.randint(1, 3)):
            _part(rng, root) if rng.random() < 0.4 else tree.spoil(rng, root, 1)
        data = tree.text(root).encode()
    (folder / "tokenizer.json").write_bytes(raw.spoilt(rng, data) if how > 0.7 else data)


def _part(rng: Random, root: Any) -> None:
    """Another kind, pattern or content somewhere: what the library has and no Gemma tokenizer needs."""
    pairs = [holder[at] for holder, at in tree.spots(root) if isinstance(holder, tree.Pairs)]
    choices: tuple[tuple[str, Any], ...] = (
        ("type", rng.choice(KINDS)),
        ("content", "x" * rng.choice((0, 1, 9, 100_000))),
        ("String", rng.choice(PATTERNS)),
        ("max_length", rng.choice(tree.NUMBERS)),
        ("id", rng.choice(tree.NUMBERS)),
        ("ids", [rng.choice(tree.NUMBERS)]),
    )
    name, value = rng.choice(choices)
    if found := [pair for pair in pairs if pair[0] == name]:
        rng.choice(found)[1] = value
    if rng.random() < 0.2 and (found := [pair for pair in pairs if pair[0] == "String"]):
        rng.choice(found)[0:2] = ["Regex", rng.choice(PATTERNS)]


def read(folder: Path, base: Path) -> Tokenizer:
    """The tokenizer, after it has cut some texts and put them together again."""
    path = folder / "tokenizer.json"
    try:
        made = Tokenizer.from_folder(folder)
    except ValueError as error:
        if type(error) is not ValueError or not str(error).startswith(f"{path}: "):
            raise lawful.Unlawful(f"no refusal of ours: {error!r}"[:1500]) from error
        raise lawful.Refused(str(error)) from error
    for given in TEXTS:
        _use(made, given)
    return made


def _use(made: Tokenizer, given: str) -> None:
    try:
        made.decode(made.encode(given))
        made.decode(made.encode(given, add_bos=True), skip_special=False)
    except ValueError as error:
        if not str(error).startswith(("the tokenizers library failed: ", "the tokenizer has no token ")):
            raise lawful.Unlawful(f"no refusal of ours: {error!r}"[:1500]) from error
        raise lawful.Refused(str(error)) from error


KIND = Kind("tokenizer", 3, base, spoil, read, ())
