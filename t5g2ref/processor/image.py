"""Images to the vision tower's pixels: RGB, bilinear resize, [-1, 1]; and pan-and-scan crops.

Source: transformers' `Gemma3ImageProcessorPil` (T5Gemma 2 uses Gemma 3's processor), equal to the last bit.
The torchvision variant, transformers' default where torchvision is installed, resizes with other code.
Needs Pillow, `pip install 't5g2ref[image]'`, imported at the first use.

What a pixel value goes through:

- **Orientation.** Files and encoded bytes are turned upright by their EXIF tag; a Pillow image is taken as it
  lies. Both are what transformers does (`load_image` for paths, nothing for images handed over).
- **Colour.** `convert("RGB")` of Pillow: alpha is dropped, not blended; palettes are looked up; grey is
  repeated; 16-bit grey is clipped at 255, not scaled. transformers does the same for paths, and up to 5.20
  for Pillow images; from 5.21 on it blends a Pillow image with alpha onto white, but still not the same file
  given by its path. To get that, blend before calling.
- **Format.** Files and bytes may be one of `FORMATS`. Pillow knows more; among them are some that hand an untrusted
  file to another program (EPS to Ghostscript), so the rest stay shut.
- **Value.** uint8 × (1 / 255) in float64, rounded to float32; then (x − 0.5) / 0.5 in float32.

Shapes: I images and crops, S image_size; sizes and boxes are (width, height) and (left, top, right, bottom)
in pixels, as Pillow has them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from t5g2ref.files import opened
from t5g2ref.notes import note

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageSource = str | os.PathLike[str] | bytes | Image | NDArray[np.uint8]

Box = tuple[int, int, int, int]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # Pillow's own MAX_IMAGE_PIXELS: a quarter of a gibibyte of RGB
ROOM = 95_000_000  # bytes that a decoder may take, beside twice the file, before it finds that the file is broken
_TIMES = {"TIFF": 2, "WEBP": 2}  # a decoder's own copy of all pixels, beside Pillow's


def preprocess(image: ImageSource, image_size: int, *, max_pixels: int | None = None) -> NDArray[np.float32]:
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
    return _pixels(_rgb(image, max_pixels), image_size)


def preprocess_all(
    images: Sequence[ImageSource],
    image_size: int,
    pan_and_scan: bool = False,
    *,
    max_pixels: int | None = None,
) -> tuple[NDArray[np.float32], list[int]]:
    """Several images, each followed by its crops: (pixels float32 (I, 3, S, S), crops per image).

    The counts, 0 everywhere without pan_and_scan, are what `t5g2ref.text.expand_images` takes, so that rows
    of pixels and runs of image tokens come in one order. Errors as `preprocess`; no images give I = 0.
    """
    pixels: list[NDArray[np.float32]] = []
    crops: list[int] = []
    for image in images:  # one decoded image in memory at a time
        views = _views(_rgb(image, max_pixels), pan_and_scan)
        pixels.extend(_pixels(view, image_size) for view in views)
        crops.append(len(views) - 1)
    empty = np.empty((0, 3, image_size, image_size), dtype=np.float32)
    return np.stack(pixels) if pixels else empty, crops


def pan_and_scan(
    size: tuple[int, int], *, min_crop: int = 256, max_crops: int = 4, min_ratio: float = 1.2
) -> list[Box]:
    """The crops of an image of size (width, height), in reading order; none where it is not elongated enough.

    The long side is cut into equal parts, the last shorter where it does not divide:

        parts = long / short, halves up; at most long // min_crop; then at least 2; then at most max_crops
        none if long / short < min_ratio, or if a part or the short side is below min_crop

    So (1024, 512) gives [(0, 0, 512, 512), (512, 0, 1024, 512)], and no image under 256 pixels high or wide
    gives any. The defaults are the released processor's. Raises ValueError for sizes or limits out of range.
    Source: transformers `Gemma3ImageProcessorPil.pan_and_scan`, defaults in `Gemma3Processor.images_kwargs`.
    """
    width, height = size
    if min(width, height) < 1:
        raise ValueError(f"size must be (width, height), both at least 1; found {size}")
    if not 1 <= max_crops <= min_crop:  # more parts than pixels in a part could leave the last one empty
        raise ValueError(f"need 1 <= max_crops <= min_crop; found max_crops={max_crops}, min_crop={min_crop}")
    long, short = max(size), min(size)
    if long / short < min_ratio:
        return []
    halves_up = (2 * long + short) // (2 * short)
    parts = min(max(2, min(halves_up, long // min_crop)), max_crops)
    step = -(-long // parts)
    if min(step, short) < min_crop:
        return []
    spans = [(start, min(start + step, long)) for start in range(0, parts * step, step)]
    if width >= height:
        return [(left, 0, right, height) for left, right in spans]
    return [(0, top, width, bottom) for top, bottom in spans]


def levels() -> NDArray[np.float32]:
    """The value of each of the 256 levels: float32 (256,), from -1 to 1.

    The product is rounded once, from float64, and the rest is float32, as transformers' `rescale` and
    `normalize` do. A product with a float32 1 / 255 would move 111 of the levels in their last place.
    """
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    half = np.float32(0.5)
    return (unit - half) / half


def _pixels(rgb: Image, image_size: int) -> NDArray[np.float32]:
    """An RGB image resized to (S, S) in uint8 and mapped to its levels: float32 (3, S, S)."""
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel; found {image_size}")
    resized = rgb.resize((image_size, image_size), resample=_pillow().Resampling.BILINEAR)
    channels_first = np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1)
    return levels()[np.ascontiguousarray(channels_first)]


def _views(rgb: Image, crop: bool) -> list[Image]:
    """The image, then its crops."""
    return [rgb, *(rgb.crop(box) for box in pan_and_scan(rgb.size))] if crop else [rgb]


def _rgb(source: ImageSource, max_pixels: int | None) -> Image:
    """Any accepted source as a loaded Pillow image in mode RGB."""
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"image of {len(source)} bytes", max_pixels)
    if isinstance(source, str | os.PathLike):
        with opened(source) as file:
            return _decode(file, os.fspath(source), max_pixels)
    if not isinstance(source, _pillow().Image):
        kind = type(source).__name__
        raise TypeError(f"image must be a path, bytes, a Pillow image or a uint8 array; found {kind}")
    return _converted(source, getattr(source, "filename", "") or "Pillow image", max_pixels)


def _from_array(array: NDArray[Any], max_pixels: int | None) -> Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(
            f"an image array must be uint8 (height, width, 3); found {array.dtype} {array.shape}: "
            "scale floats to 0..255, put channels last, repeat grey three times"
        )
    height, width = array.shape[:2]
    _check_size((width, height), "image array", max_pixels)
    image: Image = _pillow().fromarray(np.ascontiguousarray(array))
    return image


def _decode(file: BinaryIO, name: str, max_pixels: int | None) -> Image:
    """The first frame of an image file, upright, in RGB."""
    pillow = _pillow()
    from PIL.ImageOps import exif_transpose

    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        image = pillow.open(file, formats=FORMATS)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # decoders raise whatever a broken header led them to, SyntaxError included
        kinds = ", ".join(FORMATS)
        raise ValueError(f"{name}: not a readable image ({type(error).__name__}); expected one of {kinds}") from error
    with image:
        _check_size(image.size, name, max_pixels)
        if max_pixels is None:
            _check_claim(image, name, size)
        try:
            upright = exif_transpose(image)
        except Exception as error:
            raise ValueError(f"{name}: broken image: {error}") from error
        return _converted(upright, name, max_pixels)


def _converted(image: Image, name: str, max_pixels: int | None) -> Image:
    _check_size(image.size, name, max_pixels)
    try:
        rgb = image.convert("RGB")
    except Exception as error:  # a lazily opened image is decoded here, and a mode may have no way to RGB
        raise ValueError(f"{name}: cannot decode mode {image.mode} to RGB: {error}") from error
    _note_white(image, name)
    return rgb


def _note_white(image: Image, name: str) -> None:
    """Say of a deep grey picture that its values are clipped, as Pillow and transformers do, and not scaled."""
    if image.mode[0] not in "IF":
        return
    most: Any = image.getextrema()[1]
    if most > 255:
        note(f"{name}: values to {most:g}, expected at most 255: all above come out white; scale it to 8 bits first")


def _check_size(size: tuple[int, int], name: str, max_pixels: int | None) -> None:
    width, height = size
    if min(size) < 1:
        raise ValueError(f"{name}: empty image, {width} × {height} pixels")
    if width * height > (most := MAX_PIXELS if max_pixels is None else max_pixels):
        raise ValueError(
            f"{name}: {width} × {height} pixels are more than max_pixels={most}; "
            "raise max_pixels if you trust the source"
        )


def _check_claim(image: Image, name: str, size: int) -> None:
    """ValueError for more pixels than a file of `size` bytes bears out: memory goes by what its header says."""
    each = 1 if image.mode in ("1", "L", "P") else 4
    if "progressive" in image.info:  # all coefficients come first, in 16 bits
        each = max(each, 2 * len(image.getbands()))
    most = (ROOM + 2 * size) // (each * _TIMES.get(image.format or "", 1))
    width, height = image.size
    if width * height > most:
        raise ValueError(
            f"{name}: {width} × {height} pixels, expected at most {most} of a file of {size} bytes; "
            "shrink the picture, or give max_pixels if you trust the source"
        )


def _pillow() -> Any:
    """The module PIL.Image, or an error that says what to install."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("images need Pillow: pip install 't5g2ref[image]'") from error
    return PIL.Image
