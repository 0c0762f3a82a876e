"""Images to the vision tower's pixels: RGB, bilinear resize, [-1, 1]; and pan-and-scan crops.

Source: transformers' `Gemma3ImageProcessorPil` (T5Gemma 2 uses Gemma 3's processor), equal to the last bit.
The torchvision variant, transformers' default where torchvision is installed, resizes with other code.
`picture_files.py` decodes, `crops.py` cuts.

A value is uint8 × (1 / 255) in float64, rounded to float32; then (x − 0.5) / 0.5 in float32. A `Rule` has other
numbers where the checkpoint's files do.

Shapes: I images and crops, S image_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from t5g2ref.processor.crops import pan_and_scan as boxes_of
from t5g2ref.processor.picture_files import pillow, rgb
from t5g2ref.processor.rule import RELEASED, Rule

if TYPE_CHECKING:
    from PIL.Image import Image

    from t5g2ref.processor.picture_files import ImageSource


def preprocess(
    image: ImageSource, image_size: int, *, max_pixels: int | None = None, rule: Rule = RELEASED
) -> NDArray[np.float32]:
    """One image as the vision tower reads it: float32 (3, S, S) in [-1, 1], channels red, green, blue.

    image: a path, the bytes of an image file, a Pillow image, or uint8 (height, width, 3). The aspect ratio
    is not kept. An animation gives its first frame.
    max_pixels bounds width × height, read from the header before anything is decoded. By default that is MAX_PIXELS,
    and for a file no more than its size bears out: a small file that claims to be large may not cost more than ROOM
    before it is refused. A photograph of 23 million pixels always passes, a progressive one of 15 million. Pillow by
    itself refuses more than twice `PIL.Image.MAX_IMAGE_PIXELS`; to go beyond, raise that as well.
    Raises ValueError for what is no image, broken, empty or too large, naming the file; OSError for a file
    that cannot be opened; TypeError for anything else; ImportError without Pillow.
    """
    return _pixels(rgb(image, max_pixels), image_size, rule)


def preprocess_all(
    images: Sequence[ImageSource],
    image_size: int,
    pan_and_scan: bool = False,
    *,
    max_pixels: int | None = None,
    rule: Rule = RELEASED,
) -> tuple[NDArray[np.float32], list[int]]:
    """Several images, each followed by its crops: (pixels float32 (I, 3, S, S), crops per image).

    The counts, 0 everywhere without pan_and_scan, are what `t5g2ref.processor.text.expand_images` takes, so that
    rows of pixels and runs of image tokens come in one order. Errors as `preprocess`; no images give I = 0.
    """
    pixels: list[NDArray[np.float32]] = []
    crops: list[int] = []
    for image in images:  # one decoded image in memory at a time
        views = _views(rgb(image, max_pixels), pan_and_scan or rule.crops, rule)
        pixels.extend(_pixels(view, image_size, rule) for view in views)
        crops.append(len(views) - 1)
    empty = np.empty((0, 3, image_size, image_size), dtype=np.float32)
    return np.stack(pixels) if pixels else empty, crops


def levels(rule: Rule = RELEASED, channel: int = 0) -> NDArray[np.float32]:
    """The value of each of the 256 levels: float32 (256,), from -1 to 1.

    The product is rounded once, from float64, and the rest is float32, as transformers' `rescale` and
    `normalize` do. A product with a float32 1 / 255 would move 111 of the levels in their last place.
    """
    unit = np.arange(256, dtype=np.float64)
    unit32 = (unit * rule.factor if rule.rescale else unit).astype(np.float32)
    if not rule.normalize:
        return unit32
    return (unit32 - np.float32(rule.mean[channel])) / np.float32(rule.std[channel])


def _pixels(image: Image, image_size: int, rule: Rule) -> NDArray[np.float32]:
    """An RGB image resized to (S, S) in uint8 and mapped to its levels: float32 (3, S, S)."""
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel; found {image_size}")
    resized = image.resize((image_size, image_size), resample=pillow().Resampling(rule.resample))
    channels = np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1)
    return np.stack([levels(rule, channel)[plane] for channel, plane in enumerate(channels)])


def _views(image: Image, cut: bool, rule: Rule) -> list[Image]:
    """The image, then its crops."""
    if not cut:
        return [image]
    limits = {"min_crop": rule.min_crop, "max_crops": rule.max_crops}
    return [image, *(image.crop(box) for box in boxes_of(image.size, **limits, min_ratio=rule.min_ratio))]
