"""Batches on the device: every step has rows of all tasks, in fixed shapes, and the host is waited for nowhere.

All texts are encoded once and put on the device. Pictures are enlarged once, as the processor does it up to rounding,
and moved, turned, scaled, stretched and blurred with noise anew in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import data
import numpy as np
import pictures
import tokenizer
import torch
from settings import IMAGE_SIZE, TOKENS_PER_IMAGE
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

SHARES = {"sums": 0.18, "dates": 0.09, "numbers": 0.18, "denoising": 0.2, "name": 0.12, "add": 0.23}
"""What part of a batch each task has."""
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """ids (B, S) padded behind, labels (B, T) with -100 behind; pixels (I, 3, P, P) in the order of the image tokens,
    None without pictures."""

    ids: Tensor
    labels: Tensor
    pixels: Tensor | None


def padded(rows: Sequence[Sequence[int]], fill: int, length: int | None = None) -> Tensor:
    """The rows as one int64 tensor, as long as the longest unless said."""
    out = torch.full((len(rows), length or max(map(len, rows))), fill)
    for at, row in enumerate(rows):
        out[at, : len(row)] = torch.tensor(row)
    return out


class Texts:
    """The examples of one task, encoded."""

    def __init__(self, words: Tokenizer, examples: Sequence[data.Example], device: str) -> None:
        sources = [one.ids for one in words.encode_batch([e.text for e in examples])]
        answers = [one.ids for one in words.encode_batch([e.answer for e in examples], add_special_tokens=False)]
        self.ids = padded(sources, tokenizer.PAD).to(device)
        self.labels = padded([[*row, tokenizer.EOS] for row in answers], IGNORED).to(device)

    def drawn(self, count: int) -> tuple[Tensor, Tensor]:
        """So many rows, any of them."""
        chosen = torch.randint(0, len(self.ids), (count,), device=self.ids.device)
        return self.ids[chosen], self.labels[chosen]


class Pictures:
    """The pictures of one side of the split, and how a prompt with some of them is put together."""

    def __init__(self, words: Tokenizer, digits: pictures.Digits, device: str) -> None:
        self.device = device
        small = torch.tensor(digits.pixels, device=device, dtype=torch.float32)[:, None] / 255
        self.images = functional.interpolate(small, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
        self.digits = torch.tensor(digits.labels, device=device)
        prompts = {task: data.expanded(prompt, TOKENS_PER_IMAGE) for task, prompt in PROMPTS.items()}
        self.prompts = {task: torch.tensor(words.encode(text).ids, device=device) for task, text in prompts.items()}

        def encoded(answers: list[str]) -> Tensor:
            rows = words.encode_batch(answers, add_special_tokens=False)
            return padded([[*row.ids, tokenizer.EOS] for row in rows], IGNORED).to(device)

        self.named = encoded([data.named(a) for a in range(10)])
        self.added = encoded([data.added(a, b) for a in range(10) for b in range(10)])

    def rows(self, task: str, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """ids and labels for pictures `chosen`, (B, 1) or (B, 2)."""
        ids = self.prompts[task].expand(len(chosen), -1)
        digits = self.digits[chosen]
        return ids, self.named[digits[:, 0]] if task == "name" else self.added[digits[:, 0] * 10 + digits[:, 1]]

    def drawn(self, task: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """So many rows of any pictures: ids, labels, and the pictures."""
        size = (count, 1 if task == "name" else 2)
        chosen = torch.randint(0, len(self.digits), size, device=self.device)
        return *self.rows(task, chosen), chosen.flatten()

    def plain(self, chosen: Tensor) -> Tensor:
        """The pictures as they are: (I, 3, P, P) in [-1, 1]."""
        return (self.images[chosen] * 2 - 1).expand(-1, 3, -1, -1)

    def varied(self, chosen: Tensor) -> Tensor:
        """The pictures, all but a fifth changed at random."""
        count = len(chosen)
        spread = torch.rand((count, 7), device=self.device) * 2 - 1
        spread = spread * (torch.rand((count, 1), device=self.device) > 0.2)
        theta = _affine(spread)
        grid = functional.affine_grid(theta, [count, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
        moved = functional.grid_sample(self.images[chosen], grid, mode="bilinear", align_corners=False)
        ink = moved * (1 + 0.2 * spread[:, 6, None, None, None])
        noise = torch.randn((count, 1, 8, 8), device=self.device) * 0.06 * spread[:, 5, None, None, None].abs()
        noisy = ink + functional.interpolate(noise, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
        return (noisy.clamp(0, 1) * 2 - 1).expand(-1, 3, -1, -1)


PROMPTS = {"name": data.NAME, "add": data.ADD}


def _affine(spread: Tensor) -> Tensor:
    """(I, 2, 3) maps from numbers in [-1, 1]: turn, two scales, and two shifts of up to 1.2 pixels of a digit."""
    turn, shear = 0.25 * spread[:, 0], 0.15 * spread[:, 5]
    wide, high = 1 + 0.15 * spread[:, 1], 1 + 0.15 * spread[:, 2]
    right, down = 0.3 * spread[:, 3], 0.3 * spread[:, 4]
    top = torch.stack([wide * turn.cos(), shear - turn.sin(), right], dim=1)
    bottom = torch.stack([turn.sin(), high * turn.cos(), down], dim=1)
    return torch.stack([top, bottom], dim=1)


def joined(parts: Sequence[tuple[Tensor, Tensor]], pixels: Tensor | None) -> Batch:
    """One batch of rows of several lengths."""

    def stacked(rows: Sequence[Tensor], fill: int) -> Tensor:
        longest = max(row.shape[1] for row in rows)
        return torch.cat([functional.pad(row, (0, longest - row.shape[1]), value=fill) for row in rows])

    ids, labels = zip(*parts, strict=True)
    return Batch(stacked(ids, tokenizer.PAD), stacked(labels, IGNORED), pixels)


class Mixture:
    """Batches of all tasks, each task in its share."""

    def __init__(self, tasks: Sequence[str], texts: dict[str, Texts], images: Pictures, size: int) -> None:
        self.texts, self.images = texts, images
        whole = sum(SHARES[task] for task in tasks)
        self.counts = {task: max(1, round(size * SHARES[task] / whole)) for task in tasks}

    def drawn(self) -> Batch:
        """The next batch."""
        parts = [self.texts[task].drawn(count) for task, count in self.counts.items() if task in self.texts]
        drawn = [self.images.drawn(task, count) for task, count in self.counts.items() if task in PROMPTS]
        pixels = self.images.varied(torch.cat([images for _, _, images in drawn])) if drawn else None
        return joined([*parts, *((ids, labels) for ids, labels, _ in drawn)], pixels)


def measured(texts: dict[str, Texts], images: Pictures, pairs: np.ndarray) -> dict[str, Batch]:
    """What is asked of the held-out side: a batch a task."""
    found = {task: Batch(one.ids, one.labels, None) for task, one in texts.items()}
    every = torch.arange(len(images.digits), device=images.device)[:, None]
    for task, chosen in (("name", every), ("add", torch.tensor(pairs, device=images.device))):
        found[task] = Batch(*images.rows(task, chosen), images.plain(chosen.flatten()))
    return found
