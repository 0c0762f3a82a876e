"""What the demo gets right on inputs that it never saw: t5g2ref in NumPy, and transformers beside it.

    python tools/demo/measure.py FOLDER            a table
    python tools/demo/measure.py FOLDER --card     measured.json and README.md in the folder, too

Both go from texts and pictures to words by greedy choice in float32. An answer counts if every character is right.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import card
import data
import numpy as np
import pictures
from numpy.typing import NDArray

import t5g2ref
from t5g2ref.config import Config
from t5g2ref.generate.greedy import greedy
from t5g2ref.processor.image import preprocess_all
from t5g2ref.processor.text import Tokenizer, expand_images

ROWS, MOST_NEW = 100, 40


@dataclass(frozen=True)
class Question:
    """A prompt, its pictures as uint8 (8, 8, 3), and the right answer."""

    text: str
    images: tuple[NDArray[np.uint8], ...]
    answer: str


@dataclass(frozen=True)
class Figure:
    """Of one task: how many inputs, how many t5g2ref and transformers have right, and how many get the same ids.

    The last two are None where transformers was not asked.
    """

    task: str
    inputs: int
    right: int
    transformers: int | None
    same_ids: int | None


def questions(task: str, held: pictures.Digits, count: int, seed: int) -> list[Question]:
    """At most so many held-out inputs of a task; of single pictures all."""
    if task in data.TEXT_TASKS:
        return [Question(one.text, (), one.answer) for one in data.examples(task, True, seed, count)]
    if task == "name":
        every = range(len(held.labels))
        return [Question(data.NAME, (held.picture(i),), data.named(int(held.labels[i]))) for i in every]
    found = pictures.pairs(held, count, seed)
    digits = held.labels[found]
    return [
        Question(data.ADD, (held.picture(i), held.picture(j)), data.added(int(a), int(b)))
        for (i, j), (a, b) in zip(found, digits, strict=True)
    ]


@dataclass(frozen=True)
class Inputs:
    """ids and mask (B, S), padded behind; pixels (I, 3, P, P) or None."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    pixels: NDArray[np.float32] | None


def read(batch: list[Question], words: Tokenizer, config: Config) -> Inputs:
    """The questions as T5Gemma 2's processor reads them."""
    rows, images = [], []
    for one in batch:
        pixels, crops = preprocess_all(one.images, config.vision.image_size)
        rows.append(words.encode(expand_images(one.text, crops, tokens_per_image=config.mm_tokens_per_image)))
        images.append(pixels)
    pad = config.decoder.pad_token_id or 0
    ids = np.full((len(rows), max(map(len, rows))), pad)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    pixels = np.concatenate(images)
    return Inputs(ids, mask, pixels if len(pixels) else None)


class Reference:
    """t5g2ref in NumPy."""

    def __init__(self, folder: Path) -> None:
        self.model = t5g2ref.load(folder, "float32")

    def ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """The answers' ids (B, T), bos in front."""
        found = greedy(
            self.model,
            inputs.ids,
            attention_mask=inputs.mask,
            pixel_values=inputs.pixels,
            max_new_tokens=MOST_NEW,
        )
        return np.asarray(found.ids)


class Peer:
    """transformers' model, by its own `generate`."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import T5Gemma2ForConditionalGeneration

        self.tensor = torch.tensor
        self.model = T5Gemma2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """The answers' ids (B, T), bos in front."""
        pixels = {} if inputs.pixels is None else {"pixel_values": self.tensor(inputs.pixels)}
        found = self.model.generate(
            input_ids=self.tensor(inputs.ids),
            attention_mask=self.tensor(inputs.mask),
            max_new_tokens=MOST_NEW,
            do_sample=False,
            **pixels,
        )
        return np.asarray(found)


def ended(ids: NDArray[np.int64], ends: tuple[int, ...]) -> list[list[int]]:
    """Each row up to its end."""
    rows = []
    for row in ids.tolist():
        at = next((i for i, one in enumerate(row) if one in ends), len(row))
        rows.append(row[: at + 1])
    return rows


def figure(task: str, asked: list[Question], folder: Path, models: list[Reference | Peer]) -> Figure:
    """Ask the models all questions of a task."""
    words, config = Tokenizer.from_folder(folder), Config.load(folder)
    right, same = [0] * len(models), 0
    for first in range(0, len(asked), ROWS):
        batch = asked[first : first + ROWS]
        inputs = read(batch, words, config)
        answers = [ended(model.ids(inputs), config.decoder.eos_token_id) for model in models]
        for at, rows in enumerate(answers):
            right[at] += sum(words.decode(row) == one.answer for row, one in zip(rows, batch, strict=True))
        same += sum(a == b for a, b in zip(answers[0], answers[-1], strict=True))
    peer = len(models) > 1
    return Figure(task, len(asked), right[0], right[1] if peer else None, same if peer else None)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="inputs of a task, of single pictures all")
    parser.add_argument("--seed", type=int, default=1, help="which inputs")
    parser.add_argument("--digits", help="a file of pictures.keep, where there is no scikit-learn")
    parser.add_argument("--no-transformers", action="store_true", help="ask t5g2ref alone")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--card", action="store_true", help="write measured.json and README.md in the folder")
    chosen = parser.parse_args()
    held = pictures.split(pictures.load(chosen.digits))[1]
    models: list[Any] = [Reference(chosen.folder)] + ([] if chosen.no_transformers else [Peer(chosen.folder)])
    figures = [
        figure(task, questions(task, held, chosen.count, chosen.seed), chosen.folder, models)
        for task in (*data.PICTURE_TASKS, *data.TEXT_TASKS)
    ]
    found = [asdict(one) for one in figures]
    print(json.dumps(found, indent=2) if chosen.json else "\n".join(card.table(found)))
    if chosen.card:
        (chosen.folder / "measured.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (chosen.folder / "README.md").write_text(card.text(chosen.folder), encoding="utf-8")


if __name__ == "__main__":
    main()
