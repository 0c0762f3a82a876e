"""Small PNGs as data addresses. Values are drawn in two colours of growing opacity, so that any background shows 0."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from t5g2ref.numerics import Array

LEVELS = 7  # of each sign: with 0 no more than fit into four bits a cell
STRENGTHS = 15  # beside 0: four bits as well
LARGEST = 256  # pixels a side of a picture
BLUE, ORANGE = (23, 104, 214), (214, 98, 12)


def signed(numbers: Array) -> str:
    """Rows of numbers: blue above 0, orange below, nothing at 0; opaque at the 99th percentile of their sizes."""
    top = float(np.quantile(np.abs(numbers), 0.99)) or float(np.abs(numbers).max()) or 1.0
    levels = np.clip(np.rint(numbers / top * LEVELS), -LEVELS, LEVELS) + LEVELS
    colours = [*[ORANGE] * LEVELS, *[BLUE] * (LEVELS + 1)]
    alpha = [round(255 * abs(level - LEVELS) / LEVELS) for level in range(2 * LEVELS + 1)]
    return _palette(levels, colours, alpha)


def strength(weights: Array, top: float = 0.0, colour: tuple[int, int, int] = BLUE) -> str:
    """Rows of numbers from 0: the larger, the more opaque; by the root, so that small ones can be seen.

    top: the number that is fully opaque; the largest by default.
    """
    levels = np.rint(np.sqrt(np.clip(weights / (top or float(weights.max()) or 1.0), 0.0, 1.0)) * STRENGTHS)
    alpha = [round(255 * level / STRENGTHS) for level in range(STRENGTHS + 1)]
    return _palette(levels, [colour] * (STRENGTHS + 1), alpha)


def photo(pixels: Array) -> str:
    """A picture (C, side, side) in [-1, 1], as the tower sees it; a large one is made smaller. One channel is grey."""
    levels = np.clip(np.rint((np.asarray(pixels, dtype=np.float64) + 1) * 127.5), 0, 255).astype(np.uint8)
    levels = levels if levels.shape[0] == 3 else np.repeat(levels[:1], 3, axis=0)
    height, width = levels.shape[1:]
    image = _pillow().frombytes("RGB", (width, height), levels.transpose(1, 2, 0).tobytes())
    return _address(image if max(image.size) <= LARGEST else image.resize((LARGEST, LARGEST)))


def _palette(levels: Array, colours: list[tuple[int, int, int]], alpha: list[int]) -> str:
    height, width = levels.shape
    image = _pillow().frombytes("P", (width, height), levels.astype(np.uint8).tobytes())
    image.putpalette([part for colour in colours for part in colour])
    return _address(image, transparency=bytes(alpha))


def _address(image: Any, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _pillow() -> Any:
    """The module PIL.Image, or an error that says what to install."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("the atlas needs Jinja2 and Pillow: pip install 't5g2ref[atlas]'") from error
    return PIL.Image
