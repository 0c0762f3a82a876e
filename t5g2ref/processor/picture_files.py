"""Pictures from files, bytes, arrays and Pillow, in RGB; a file is untrusted, and refused before it costs memory.

Needs Pillow, `pip install 't5g2ref[image]'`, imported at the first use.

- **Orientation.** Files and encoded bytes are turned upright by their EXIF tag; a Pillow image is taken as it
  lies. Both are what transformers does (`load_image` for paths, nothing for images handed over).
- **Colour.** `convert("RGB")` of Pillow: palettes are looked up; grey is repeated; 16-bit grey is clipped at 255, not
  scaled.
- **Alpha.** A file's is dropped, and a Pillow image with one is laid on white. Where one colour is marked as
  see-through (PNG, GIF), it becomes white by either way. So does transformers from 5.21 on; before it dropped all.
- **Turned TIFF.** Pillow (13.0) tears the rows of an uncompressed TIFF on its side that it opens by its path, and so
  does transformers. Here, as from bytes, the picture is upright.
- **Format.** Files and bytes may be one of `FORMATS`. Pillow knows more; among them are some that hand an untrusted
  file to another program (EPS to Ghostscript), so the rest stay shut.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from t5g2ref.files import opened
from t5g2ref.notes import note

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageSource = str | os.PathLike[str] | bytes | Image | NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # Pillow's own MAX_IMAGE_PIXELS: a quarter of a gibibyte of RGB
ROOM = 95_000_000  # bytes that a decoder may take, beside twice the file, before it finds that the file is broken
_TIMES = {"TIFF": 2, "WEBP": 2}  # a decoder's own copy of all pixels, beside Pillow's


def rgb(source: ImageSource, max_pixels: int | None) -> Image:
    """Any accepted source as a loaded Pillow image in mode RGB.

    What Pillow warns of is not passed on: a picture is taken or refused, and the bounds are this module's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"PIL\.")
        return _rgb(source, max_pixels)


def _rgb(source: ImageSource, max_pixels: int | None) -> Image:
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"image of {len(source)} bytes", max_pixels)
    if isinstance(source, str | os.PathLike):
        with opened(source) as file:
            return _decode(file, os.fspath(source), max_pixels)
    if not isinstance(source, pillow().Image):
        kind = type(source).__name__
        raise TypeError(f"image must be a path, bytes, a Pillow image or a uint8 array; found {kind}")
    name = getattr(source, "filename", "") or "Pillow image"
    return _converted(source, name, max_pixels, file=False)


def _from_array(array: NDArray[Any], max_pixels: int | None) -> Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(
            f"an image array must be uint8 (height, width, 3); found {array.dtype} {array.shape}: "
            "scale floats to 0..255, put channels last, repeat grey three times"
        )
    height, width = array.shape[:2]
    _check_size((width, height), "image array", max_pixels)
    image: Image = pillow().fromarray(np.ascontiguousarray(array))
    return image


def _decode(file: BinaryIO, name: str, max_pixels: int | None) -> Image:
    """The first frame of an image file, upright, in RGB."""
    library = pillow()
    from PIL.ImageOps import exif_transpose

    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        image = library.open(file, formats=FORMATS)
    except library.DecompressionBombError as error:
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
        return _converted(upright, name, max_pixels, file=True)


def _converted(image: Image, name: str, max_pixels: int | None, *, file: bool) -> Image:
    """The image in RGB; where it is see-through it is white, but a file's alpha is dropped before."""
    _check_size(image.size, name, max_pixels)
    try:
        converted = _on_white(image.convert("RGB") if file else image)
    except Exception as error:  # a lazily opened image is decoded here, and a mode may have no way to RGB
        raise ValueError(f"{name}: cannot decode mode {image.mode} to RGB: {error}") from error
    _note_white(image, name)
    return converted


def _on_white(image: Image) -> Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    library, clear = pillow(), image.convert("RGBA")
    ground = library.new("RGBA", clear.size, (255, 255, 255, 255))
    return library.alpha_composite(ground, clear).convert("RGB")  # type: ignore[no-any-return]


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


def pillow() -> Any:
    """The module PIL.Image, or an error that says what to install."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("images need Pillow: pip install 't5g2ref[image]'") from error
    return PIL.Image
