"""Scikit-learn's handwritten digits: 1797 pictures of 8 × 8 pixels, of which a fifth are held out.

The split goes by a hash of the pixels, so two pictures that are the same lie on one side. Where scikit-learn is not
installed, a file has them:

    python -c "import pictures; pictures.keep('digits.npz')"

The pictures in the checkpoint's folder are held-out ones, enlarged so that a person sees them:

    python -c "import pictures; pictures.draw('FOLDER')"
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import words
from numpy.typing import NDArray

CLEAR = (1, 0, 1, 6, 10, 0, 7, 5, 5, 5)  # of each digit's held-out pictures, in their order: one that is easy to read
SIDE = 128  # pixels of a picture that is drawn


@dataclass(frozen=True)
class Digits:
    """pixels uint8 (I, 8, 8) from 0 to 255, ink bright; labels (I,) from 0 to 9."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> Digits:
        return Digits(self.pixels[chosen], self.labels[chosen])

    def picture(self, index: int) -> NDArray[np.uint8]:
        """One picture as colour: uint8 (8, 8, 3)."""
        return np.repeat(self.pixels[index][:, :, None], 3, axis=2)


def _given(file: str | None) -> tuple[NDArray[Any], NDArray[Any]]:
    if file:
        with np.load(file) as kept:
            return kept["images"], kept["target"]
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


def load(file: str | None = None) -> Digits:
    """All pictures, from scikit-learn or from a file of `keep`. Sixteen levels of ink become 256."""
    images, target = _given(file)
    pixels = np.round(np.asarray(images, dtype=np.float64) * (255 / 16)).astype(np.uint8)
    return Digits(pixels, np.asarray(target, dtype=np.int64))


def keep(file: str) -> None:
    """Write scikit-learn's pictures to a file, for a machine without it."""
    images, target = _given(None)
    np.savez_compressed(file, images=images.astype(np.uint8), target=target.astype(np.uint8))


def split(digits: Digits) -> tuple[Digits, Digits]:
    """The pictures to train on, and those that are held out."""
    held = np.array([hashlib.sha256(one.tobytes()).digest()[0] % 5 == 0 for one in digits.pixels])
    return digits.where(~held), digits.where(held)


def pairs(held: Digits, count: int, seed: int) -> NDArray[np.int64]:
    """(count, 2) indices of pictures to add, drawn from a seed."""
    return np.random.default_rng([seed, 2]).integers(0, len(held.labels), (count, 2))


def enlarged(pixels: NDArray[np.uint8]) -> Any:
    """One picture (8, 8) as Pillow's, in grey and as large as people like it."""
    from PIL import Image

    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def draw(folder: str, file: str | None = None) -> None:
    """Write a held-out picture of each digit into the folder, zero.png to nine.png."""
    held = split(load(file))[1]
    for digit, nth in enumerate(CLEAR):
        chosen = np.flatnonzero(held.labels == digit)[nth]
        enlarged(held.pixels[chosen]).save(Path(folder) / f"{words.english(digit)}.png", optimize=True)
