"""Checkpoint folders without weights: a tokenizer, a processor's files, and what each side reads from them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from processing import big_tokenizer

import t5g2ref
from t5g2ref.config import Config
from t5g2ref.processor.prepare import Processor

SIDE, TOKENS = 32, 4
PLAIN: dict[str, Any] = {
    "image_processor_type": "Gemma3ImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "rescale_factor": 1 / 255,
    "do_rescale": True,
    "do_normalize": True,
    "do_resize": True,
    "do_convert_rgb": True,  # null in the released file; then transformers' processor of all says so
    "do_pan_and_scan": None,
}


def make(folder: Path, size: int, **settings: Any) -> Path:
    """The folder, written: a tokenizer of `size` pieces and the released processor's settings for a small tower."""
    folder.mkdir(parents=True, exist_ok=True)
    big_tokenizer.write(folder, size=size, **settings)
    (folder / "preprocessor_config.json").write_text(json.dumps(PLAIN))
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_length": TOKENS, "processor_class": "Gemma3Processor"})
    )
    return folder


def config(folder: Path) -> Config:
    """The demo's geometry with the folder's ids and the released length."""
    decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids = {token["content"]: int(index) for index, token in decoder.items()}
    demo = Config.load(t5g2ref.bundled("demo"))
    size = max(ids.values()) + 1
    wide = {
        name: replace(getattr(demo, name), vocab_size=size, max_position_embeddings=131_072)
        for name in ("encoder", "decoder")
    }
    special = {"eoi_token_index": ids["<end_of_image>"], "image_token_index": ids["<image_soft_token>"]}
    return replace(demo, **wide, **special)


def ours(folder: Path) -> Processor:
    return Processor.from_folder(folder, config(folder))


def theirs(folder: Path) -> Any:
    """transformers' processor, with its Pillow image processor also where torchvision is installed."""
    from transformers import AutoTokenizer, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    images = Gemma3ImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return Gemma3Processor(images, tokenizer, image_seq_length=TOKENS)


def other_settings(seed: int) -> dict[str, Any]:
    """A preprocessor_config.json that nobody released."""
    rng = random.Random(f"settings {seed}")
    limits = {"pan_and_scan_min_crop_size": rng.randint(4, 300), "pan_and_scan_max_num_crops": rng.randint(1, 4)}
    limits["pan_and_scan_min_ratio_to_activate"] = rng.uniform(1, 3)
    made = PLAIN | {"do_pan_and_scan": True, **limits, "resample": rng.randrange(6)}
    made |= {"image_mean": [rng.uniform(0, 1) for _ in range(3)], "image_std": [rng.uniform(0.1, 2) for _ in range(3)]}
    made |= {"rescale_factor": rng.choice([1 / 255, 1 / 127.5, 0.01]), "do_normalize": rng.random() < 0.8}
    return made | {"do_rescale": not made["do_normalize"] or rng.random() < 0.8}


def other_tokens(seed: int, size: int) -> dict[str, Any]:
    """Changes of a tokenizer_config.json: further tokens with any flags, padding, the class."""
    rng = random.Random(f"tokens {seed}")
    names = rng.sample(["qq", "x y", " zz", "<new>", "ééé", "\u2028q"], rng.randint(0, 4))
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    more = {str(size + n): {"content": name, **{flag: rng.random() < 0.4 for flag in flags}}
            for n, name in enumerate(names)}  # fmt: skip
    if rng.random() < 0.3:  # a token that is there, with other flags
        more["7"] = {"content": "<unused1>", **{flag: rng.random() < 0.5 for flag in flags}}
    made: dict[str, Any] = {"added_tokens_decoder": more, "pad_token": rng.choice(["<pad>", "<eos>", "<unused3>"])}
    made["tokenizer_class"] = rng.choice(["GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast"])
    made["add_bos_token"] = rng.random() < 0.5
    made["add_eos_token"] = rng.random() < 0.5
    if rng.random() < 0.7:
        made["padding_side"] = rng.choice(["left", "right"])
    return made
