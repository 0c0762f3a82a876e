"""The prompts of a command line: rows of ids with their mask, and pictures."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t5g2ref.config import Config
from t5g2ref.files import opened

BOI = "<start_of_image>"
MAX_BYTES = 64 * 2**20  # of a file of prompts


@dataclass(frozen=True)
class Prompts:
    """What is asked.

    Args:
        texts: as they were given, one a row.
        ids, mask: (B, S); shorter rows are padded on the left, as the model's own processor does.
        pixels: (I, C, side, side), or None.
        tokenizer: None where ids were given.
        streams: whether the one answer can be shown as it comes.
    """

    texts: list[str]
    ids: Any
    mask: Any
    pixels: Any
    tokenizer: Any
    streams: bool


def asked(options: argparse.Namespace) -> None:
    """ValueError unless the options ask one thing: to be known before anything is downloaded."""
    if sum(one is not None for one in (options.prompt, options.ids, options.batch)) != 1:
        raise ValueError("give one of --prompt TEXT, --ids 5,17,42 and --batch FILE")


def read(options: argparse.Namespace, folder: Path, config: Config) -> Prompts:
    """The prompts that the options name. ValueError or OSError for what cannot be read."""
    asked(options)
    texts = [options.prompt or options.ids or ""] if options.batch is None else _lines(options.batch)
    tokenizer = None if options.ids is not None else _tokenizer(folder, needed=options.batch is None)
    pixels, crops = _pixels(options, config)
    if tokenizer is None:
        rows = [ids_in("--ids" if options.batch is None else f"{options.batch}: each line", text) for text in texts]
    else:
        rows = _encoded(texts, crops, tokenizer, config)
    ids, mask = _padded(rows, config.decoder.pad_token_id)
    return Prompts(texts, ids, mask, pixels, tokenizer, streams=options.batch is None)


def ids_in(option: str, text: str) -> list[int]:
    """The ids of "5,17,42". ValueError names the option."""
    try:
        return [int(token) for token in text.split(",")]
    except ValueError:
        raise ValueError(f"{option}: expected integers between commas, found {text!r}") from None


def _lines(name: str) -> list[str]:
    """The file's lines, none of them empty."""
    with opened(Path(name)) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"--batch: {name} has more than {MAX_BYTES} bytes")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--batch: {name} is no UTF-8: {error}") from None
    if not lines or (empty := next((n for n, line in enumerate(lines, 1) if not line.strip()), 0)):
        raise ValueError(
            f"--batch: expected a prompt in every line of {name}, found none in line {empty if lines else 1}"
        )
    return lines


def _tokenizer(folder: Path, *, needed: bool) -> Any:
    """The folder's tokenizer, or None without one. ValueError where it is needed."""
    from t5g2ref.processor.text import Tokenizer

    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_folder(folder)
    if needed and folder.is_dir():
        raise ValueError(f"{folder}: there is no tokenizer.json, which --prompt needs; give token ids with --ids")
    return None


def _pixels(options: argparse.Namespace, config: Config) -> tuple[Any, list[int]]:
    """(pixels, crops of each picture); (None, []) without pictures."""
    if not options.image:
        return None, []
    from t5g2ref.processor.image import preprocess_all

    return preprocess_all(options.image, config.vision.image_size, options.pan_and_scan)


def _encoded(texts: list[str], crops: list[int], tokenizer: Any, config: Config) -> list[list[int]]:
    """Each text's ids; pictures go to the placeholders in their order, those that are left to the last text."""
    from t5g2ref.processor.text import expand_images

    rows, taken = [], 0
    for n, text in enumerate(texts):
        last = len(crops) if n == len(texts) - 1 else taken + text.count(BOI)
        rows.append(
            tokenizer.encode(expand_images(text, crops[taken:last], tokens_per_image=config.mm_tokens_per_image))
        )
        taken = last
    return rows


def _padded(rows: list[list[int]], pad: int) -> tuple[Any, Any]:
    """(ids, mask) (B, S), padded on the left."""
    longest = max(len(row) for row in rows)
    ids = np.array([[pad] * (longest - len(row)) + row for row in rows], dtype=np.int64).reshape(len(rows), longest)
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows]).reshape(len(rows), longest)
    return ids, mask
