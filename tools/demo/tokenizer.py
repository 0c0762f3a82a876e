"""The demo's own tokenizer: BPE as Gemma's, without byte fallback, and the files that a processor is made from.

English words are one piece each, with and without a space in front; those of the other languages are one to three.
Printable ASCII is there as single characters, so that other text is spelled. Digits are never merged, as in Gemma's.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import data
import words
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Fuse, Replace
from tokenizers.decoders import Sequence as Decoders
from tokenizers.models import BPE
from tokenizers.normalizers import Replace as Normalizer
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

SPACE = "▁"
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", data.BOI, data.EOI, data.IMAGE)
PLAIN = (*data.MASKS, *data.MODES, "\n\n")  # added, but text like any other
PAD, EOS, BOS, UNK, BOI, EOI, IMAGE = range(len(SPECIAL))
VOCABULARY = 512
PROMPT_WORDS = ("add", "and", "plus", "is", "say", "name", "the", "of", "to", *words.LANGUAGES)


def trained() -> Tokenizer:
    """The tokenizer; it is the same every time."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = Normalizer(" ", SPACE)
    tokenizer.pre_tokenizer = PreTokenizers([Split(SPACE, "merged_with_next"), Split("-", "isolated")])
    tokenizer.decoder = Decoders([Replace(SPACE, " "), Fuse()])
    added = [*SPECIAL, *PLAIN]
    letters = sorted({*string.ascii_letters, *string.digits, *string.punctuation, SPACE, "\n"})
    trainer = BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=1, special_tokens=added, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(text(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[("<bos>", BOS)]
    )
    return plain(tokenizer)


def text() -> list[str]:
    """The words that pieces are made for; those of prompts and of English answers count several times."""
    often = [*PROMPT_WORDS, *words.ENGLISH]
    return [before + word for word in [*often * 8, *words.atoms()] for before in ("", " ")]


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the tokens of PLAIN no longer special, so that decoding keeps them."""
    layout: dict[str, Any] = json.loads(tokenizer.to_str())
    for token in layout["added_tokens"]:
        token["special"] = token["content"] in SPECIAL
    return Tokenizer.from_str(json.dumps(layout))


def tokenizer_config() -> dict[str, Any]:
    """What transformers reads beside tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Gemma3Processor",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        "boi_token": data.BOI,
        "eoi_token": data.EOI,
        "image_token": data.IMAGE,
        "extra_special_tokens": {"boi_token": data.BOI, "eoi_token": data.EOI, "image_token": data.IMAGE},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "padding_side": "right",
    }


def preprocessor_config(image_size: int, tokens_per_image: int) -> dict[str, Any]:
    """How a picture is read, in the words of the released preprocessor_config.json."""
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": tokens_per_image,
        "image_std": [0.5, 0.5, 0.5],
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": image_size, "width": image_size},
    }


def write(folder: Path, image_size: int, tokens_per_image: int) -> None:
    """Put all files into the folder that turn text and pictures into a model's inputs."""
    trained().save(str(folder / "tokenizer.json"), pretty=False)
    files = {
        "tokenizer_config.json": tokenizer_config(),
        "preprocessor_config.json": preprocessor_config(image_size, tokens_per_image),
        "processor_config.json": {"image_seq_length": tokens_per_image, "processor_class": "Gemma3Processor"},
        "generation_config.json": {
            "bos_token_id": BOS,
            "decoder_start_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "max_new_tokens": 48,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
