"""The prompts of a command line: rows of ids with their mask, and pictures."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5g2ref.config import Config
from t5g2ref.config.fields import short
from t5g2ref.files import opened
from t5g2ref.processor.prepare import Processor, padded, shared

MAX_BYTES = 64 * 2**20  # of a file of prompts
MAX_ROWS = 1024  # of it: they are one batch, as long as its longest row
_INTEGER = re.compile(r"-?[0-9]{1,18}")  # which 64 bits hold


@dataclass(frozen=True)
class Prompts:
    """What is asked.

    Args:
        texts: as they were given, one a row.
        ids, mask: (B, S); shorter rows are padded as the checkpoint's files say, ids on the left.
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


def needed(options: argparse.Namespace) -> tuple[str, ...]:
    """The files beside a checkpoint without which its options cannot be read."""
    return () if options.prompt is None else ("tokenizer.json",)


def read(options: argparse.Namespace, folder: Path, config: Config) -> Prompts:
    """The prompts that the options name. ValueError or OSError for what cannot be read."""
    asked(options)
    texts = [options.prompt or options.ids or ""] if options.batch is None else _lines(options.batch)
    processor = _processor(options, folder, config)
    if processor.tokenizer is None:
        rows = [ids_in("--ids" if options.batch is None else f"{options.batch}: each line", text) for text in texts]
        pixels, _ = processor.pixels(options.image, pan_and_scan=options.pan_and_scan)
        ids, mask = padded(rows, config.decoder.pad_token_id)
        return Prompts(texts, ids, mask, pixels, None, streams=options.batch is None)
    own = shared(texts, options.image, processor.tokenizer.marks.boi)
    given = processor(texts, own, pan_and_scan=options.pan_and_scan)
    return Prompts(texts, given.ids, given.mask, given.pixels, processor.tokenizer, streams=options.batch is None)


def ids_in(option: str, text: str) -> list[int]:
    """The ids of "5,17,42". ValueError names the option."""
    wrong = next((token for token in text.split(",") if not _INTEGER.fullmatch(token.strip())), None)
    if wrong is not None:
        raise ValueError(f"{option}: expected integers between commas, found {short(wrong)}")
    return [int(token) for token in text.split(",")]


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
    if len(lines) > MAX_ROWS:
        raise ValueError(f"--batch: {name} has {len(lines)} prompts, expected {MAX_ROWS} at most; give it in parts")
    if not lines or (empty := next((n for n, line in enumerate(lines, 1) if not line.strip()), 0)):
        raise ValueError(
            f"--batch: expected a prompt in every line of {name}, found none in line {empty if lines else 1}"
        )
    return lines


def _processor(options: argparse.Namespace, folder: Path, config: Config) -> Processor:
    """The folder's processor. ValueError without a tokenizer where one is needed."""
    processor = Processor.from_folder(folder, config, text=options.ids is None)
    if options.prompt is not None and processor.tokenizer is None:
        raise ValueError(f"{folder}: there is no tokenizer.json, which --prompt needs; give token ids with --ids")
    return processor
