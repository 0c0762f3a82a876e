"""Prompts and their pictures to the model's inputs, as a checkpoint folder's own files say.

    processor = Processor.from_folder(folder)
    given = processor(["name <start_of_image>", "two plus two"], [["seven.png"], []])
    model(given.ids, labels, attention_mask=given.mask, pixel_values=given.pixels)

Every input is foreign: what is wrong with one is a ValueError of one line, which says which prompt or picture.
Source: transformers' `Gemma3Processor`, which takes empty and overlong texts; both are refused here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from t5g2ref.config import Config
from t5g2ref.config.fields import refuse
from t5g2ref.processor.rule import Rule
from t5g2ref.processor.settings import read_pictures
from t5g2ref.processor.text import Tokenizer, expand_images

if TYPE_CHECKING:
    from t5g2ref.processor.picture_files import ImageSource

MAX_TEXT = 1 << 22  # characters: more than 131 072 ids can have


@dataclass(frozen=True)
class Inputs:
    """What the model is given; I pictures and crops.

    Args:
        ids, mask: (B, S) int64; the mask is 1 at a row's own ids, 0 at padding.
        pixels: (I, 3, side, side) float32 in reading order, or None without pictures.
        crops: how many follow each picture.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    pixels: NDArray[np.float32] | None
    crops: list[int]


@dataclass(frozen=True)
class Processor:
    """A checkpoint's processor. Texts need its tokenizer; pictures do not."""

    config: Config
    rule: Rule
    tokenizer: Tokenizer | None

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], config: Config | None = None, *, text: bool = True
    ) -> Processor:
        """Read the folder's files; its tokenizer is None without tokenizer.json, or where no text is wanted.

        Raises ValueError for files that are broken, cannot be followed or contradict config.json.
        """
        folder = Path(folder)
        config = Config.load(folder) if config is None else config
        rule, side, tokens = read_pictures(folder)
        remedy = "make it agree with config.json"
        if config.has_vision and side not in (None, config.vision.image_size):
            raise refuse("preprocessor_config.json.size", side, f"{config.vision.image_size}, the tower's", remedy)
        if config.has_vision and tokens not in (None, config.mm_tokens_per_image):
            raise refuse("processor_config.json.image_seq_length", tokens, f"{config.mm_tokens_per_image}", remedy)
        there = text and (folder / "tokenizer.json").is_file()
        return cls(config, rule, Tokenizer.from_folder(folder) if there else None)

    def __call__(
        self,
        texts: Sequence[str],
        pictures: Sequence[Sequence[ImageSource]] | None = None,
        *,
        pan_and_scan: bool = False,
    ) -> Inputs:
        """Inputs of one prompt a row, each with its own pictures in the order of its placeholders.

        pan_and_scan: add crops also where the files do not say so.
        Raises ValueError for no prompt, an empty or overlong one, pictures that are not as many as placeholders, and
        as `preprocess`. Placeholders are counted before a picture is opened.
        """
        own = [[] for _ in texts] if pictures is None else [list(row) for row in pictures]
        self._check(texts, own)
        pixels, crops = self.pixels([one for row in own for one in row], pan_and_scan=pan_and_scan)
        rows, taken = [], iter(crops)
        for n, (text, row) in enumerate(zip(texts, own, strict=True)):
            rows.append(self._ids(_named(n, len(texts)), text, [next(taken) for _ in row]))
        ids, mask = padded(rows, self._pad(), "left" if self.tokenizer is None else self.tokenizer.side)
        return Inputs(ids, mask, pixels, crops)

    def pixels(
        self, pictures: Sequence[ImageSource], *, pan_and_scan: bool = False
    ) -> tuple[NDArray[np.float32] | None, list[int]]:
        """(pixels, crops of each picture); (None, []) without pictures."""
        if not pictures:
            return None, []
        if not self.config.has_vision:
            raise ValueError(f"{len(pictures)} pictures for a checkpoint without a vision tower; give none")
        from t5g2ref.processor.image import preprocess_all

        return preprocess_all(pictures, self.config.vision.image_size, pan_and_scan, rule=self.rule)

    def _check(self, texts: Sequence[str], own: list[list[ImageSource]]) -> None:
        if self.tokenizer is None:
            raise ValueError("there is no tokenizer.json, which a text needs; give token ids")
        if isinstance(texts, str) or not texts:
            raise ValueError("texts: expected a list of at least one prompt")
        if len(own) != len(texts):
            raise ValueError(f"{len(own)} rows of pictures for {len(texts)} prompts: give one a prompt, empty for none")
        for n, (text, row) in enumerate(zip(texts, own, strict=True)):
            name = _named(n, len(texts))
            _check_text(name, text)
            if (found := text.count(boi := self.tokenizer.marks.boi)) != len(row):
                raise ValueError(f"{name} has {found} × {boi!r} for {len(row)} images: write one an image")
            if row:
                self._check_ids(self.tokenizer)

    def _check_ids(self, tokenizer: Tokenizer) -> None:
        """ValueError where a picture's tokens would not get the ids that the model looks for."""
        marks = tokenizer.marks
        for name, text in (("image_token_index", marks.image), ("eoi_token_index", marks.eoi)):
            if (found := tokenizer.id_of(text)) != (wanted := getattr(self.config, name)):
                raise refuse(f"the tokenizer's {text}", found, f"{wanted}, as config.json's {name}", "make both agree")

    def _ids(self, name: str, text: str, crops: list[int]) -> list[int]:
        """One prompt's ids, no more than the files allow."""
        assert self.tokenizer is not None
        marks, tokens = self.tokenizer.marks, self.config.mm_tokens_per_image
        try:
            grown = expand_images(text, crops, boi=marks.boi, image=marks.image, eoi=marks.eoi, tokens_per_image=tokens)
            ids = self.tokenizer.encode(grown)
        except ValueError as error:
            raise ValueError(str(error) if name == "the prompt" else f"{name}: {error}") from error
        most = marks.longest or self.config.encoder.max_position_embeddings
        if len(ids) > most:
            raise ValueError(f"{name} has {len(ids)} ids, expected at most {most}; shorten it, or give fewer pictures")
        return ids

    def _pad(self) -> int:
        """The padding token's id, as tokenizer_config.json says, else as config.json does."""
        if self.tokenizer is None or self.tokenizer.marks.pad is None:
            return self.config.decoder.pad_token_id
        return self.tokenizer.id_of(self.tokenizer.marks.pad)


def shared(texts: Sequence[str], pictures: Sequence[ImageSource], boi: str) -> list[list[ImageSource]]:
    """Each text's pictures, taken from one list in the order of all placeholders. ValueError for another count."""
    counts = [text.count(boi) for text in texts]
    if len(texts) == 1:
        return [list(pictures)]  # counted later, as any row's
    if sum(counts) != len(pictures):
        raise ValueError(f"the prompts have {sum(counts)} × {boi!r} for {len(pictures)} images: write one an image")
    left = iter(pictures)
    return [[next(left) for _ in range(count)] for count in counts]


def padded(rows: Sequence[Sequence[int]], pad: int, side: str = "left") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ids, mask) (B, S) of rows of any lengths."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for n, row in enumerate(rows):
        own = slice(longest - len(row), longest) if side == "left" else slice(len(row))
        ids[n, own], mask[n, own] = row, 1
    return ids, mask


def _check_text(name: str, text: object) -> None:
    """ValueError for what no tokenizer should be asked."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"{name} is empty or no text; write some")
    if len(text) > MAX_TEXT:
        raise ValueError(f"{name} has {len(text)} characters, expected at most {MAX_TEXT}; shorten it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half of a surrogate pair; give text that UTF-8 can hold") from error


def _named(n: int, count: int) -> str:
    return "the prompt" if count == 1 else f"prompt {n + 1}"
