"""Faults of a peer's own processor, in what it makes of picture files: D58 and D77.

Each is a whole processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases.picture import PIXELS, Prepared
from conformance.cases.pictured import NAME
from conformance.defects.injection import Fault, Injection
from t5g2ref.processor.image import preprocess
from t5g2ref.processor.rule import Rule

Array = np.ndarray[Any, Any]
Image = Any  # Pillow's
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
NEAREST, LANCZOS, BICUBIC = 0, 1, 3  # Pillow's numbers


def _ruled(change: Callable[[Rule], Rule]) -> Prepared:
    """With another rule."""
    return lambda file, rule, side: preprocess(file, side, rule=change(rule))


def _changed(change: Callable[[Array], Array]) -> Prepared:
    """With other values at the end."""
    return lambda file, rule, side: np.ascontiguousarray(change(preprocess(file, side, rule=rule)))


def _read(change: Callable[[Image, int], Image]) -> Prepared:
    """With another picture than the file's, from the turned one as it was decoded and the side."""

    def prepared(file: Path, rule: Rule, side: int) -> Array:
        from PIL.ImageOps import exif_transpose

        with _opened(file) as image:
            return preprocess(change(exif_transpose(image), side).convert("RGB"), side, rule=rule)

    return prepared


def _opened(file: Path) -> Image:
    import PIL.Image

    return PIL.Image.open(file)


def _unturned(file: Path, rule: Rule, side: int) -> Array:
    with _opened(file) as image:
        return preprocess(image.convert("RGB"), side, rule=rule)


def _as_it_lies(image: Image, _: int) -> Image:
    """Whatever the mode, the first three channels are red, green and blue, or the first is all of them."""
    import PIL.Image

    values = np.asarray(image)
    values = np.clip(values[..., None] if values.ndim == 2 else values, 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(values[..., :3] if values.shape[2] > 2 else values[..., :1].repeat(3, axis=2))


def _on_white(image: Image, _: int) -> Image:
    """What is see-through is white, where a file's alpha is to be dropped."""
    if image.mode not in ("LA", "RGBA"):
        return image
    import PIL.Image

    clear = image.convert("RGBA")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear)


def _scaled_depth(image: Image, _: int) -> Image:
    """Sixteen bits to eight, where they are to be clipped at 255."""
    import PIL.Image

    deep = image.mode.startswith("I")
    return PIL.Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)) if deep else image


def _in_points(image: Image, side: int) -> Image:
    """Bilinear between the four pixels around each point, however much the picture is shrunk."""
    import PIL.Image

    values = np.asarray(image.convert("RGB"), np.float64)
    for axis in (0, 1):
        size = values.shape[axis]
        at = np.maximum((np.arange(side) + 0.5) * size / side - 0.5, 0.0)
        low = np.floor(at).astype(int)
        part = np.expand_dims(at - low, (1 - axis, 2))
        values = values.take(low, axis) * (1 - part) + values.take(np.minimum(low + 1, size - 1), axis) * part
    return PIL.Image.fromarray(np.rint(values).astype(np.uint8))


def _middle(image: Image, side: int) -> Image:
    """The aspect ratio kept, and the middle cut out."""
    from PIL.ImageOps import fit

    return fit(image.convert("RGB"), (side, side))


def _fault(variant: str, title: str, prepared: Prepared, file: int = 0, status: str = "exact") -> Fault:
    """One that shows first in that file of the case."""
    inject = Injection(how="another processor of picture files")
    return Fault("D58", title, NAME, PIXELS, inject, status, file, variant, prepared=prepared)


RESIZED, GREY_16, PALETTE, RGB_ALPHA, GREY_ALPHA, TURNED = 9, 3, 4, 5, 2, 7  # the first file of the case with each

FAULTS = [
    _fault("bicubic", "pictures are resized by bicubic", _ruled(lambda r: replace(r, resample=BICUBIC)), RESIZED),
    _fault("lanczos", "pictures are resized by Lanczos", _ruled(lambda r: replace(r, resample=LANCZOS)), RESIZED),
    _fault("nearest", "pictures are resized by nearest", _ruled(lambda r: replace(r, resample=NEAREST)), RESIZED),
    _fault("middle", "the middle of a picture is cut out, its aspect ratio kept", _read(_middle), RESIZED),
    _fault("unscaled", "levels are not divided by 255", _ruled(lambda r: replace(r, rescale=False))),
    _fault("256", "levels are divided by 256", _ruled(lambda r: replace(r, factor=1 / 256))),
    _fault("twice", "levels are divided by 255 twice", _ruled(lambda r: replace(r, factor=r.factor**2))),
    _fault("no mean", "mean and deviation are left out", _ruled(lambda r: replace(r, normalize=False))),
    _fault("ImageNet", "mean and deviation are ImageNet's", _ruled(lambda r: replace(r, mean=MEAN, std=DEVIATION))),
    _fault("BGR", "channels are blue, green, red", _changed(lambda x: x[::-1])),
    _fault("last", "channels are last", _changed(lambda x: x.transpose(1, 2, 0)), status="shape"),
    _fault(
        "modes", "channels are taken as they lie in the file, without a conversion to RGB", _read(_as_it_lies), PALETTE
    ),
    _fault("alpha", "what is see-through is laid on white", _read(_on_white), GREY_ALPHA),
    _fault("16 bits", "16-bit grey is scaled to 8 bits, not clipped", _read(_scaled_depth), GREY_16),
    _fault("unturned", "pictures are not turned by their EXIF tag", _unturned, TURNED),
    replace(
        _fault("files", "pictures are shrunk by taking points, not by averages", _read(_in_points), RESIZED), id="D77"
    ),
]
