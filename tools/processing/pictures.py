"""Picture files of every mode, size and turn, drawn by a seed."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag
KINDS = {
    "1": ("PNG", "TIFF", "BMP"),
    "L": ("PNG", "JPEG", "TIFF", "BMP", "PPM"),
    "LA": ("PNG", "TIFF"),
    "P": ("PNG", "GIF", "BMP", "TIFF"),
    "L see-through": ("PNG",),
    "P see-through": ("PNG", "GIF"),
    "P half see-through": ("PNG",),
    "RGB see-through": ("PNG",),
    "RGB": ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"),
    "RGBA": ("PNG", "WEBP", "TIFF"),
    "CMYK": ("JPEG", "TIFF"),
    "YCbCr": ("JPEG", "TIFF"),
    "I;16": ("PNG", "TIFF"),
    "I": ("TIFF",),
    "F": ("TIFF",),
}
TURNED = ("PNG", "JPEG", "WEBP", "TIFF")
ALPHA = ("LA", "RGBA")


def size(rng: random.Random) -> tuple[int, int]:
    """(width, height): common, odd, extreme, or such that pan-and-scan cuts it."""
    kind = rng.randrange(4)
    if kind == 0:
        short, long = rng.randint(1, 3), rng.randint(500, 3000)
    elif kind == 1:
        short = rng.randint(256, 400)
        long = int(short * rng.uniform(1.1, 5))
    else:
        short, long = (rng.randint(1, 300) for _ in range(2))
    return (short, long) if rng.random() < 0.5 else (long, short)


def values(rng: random.Random, width: int, height: int) -> np.ndarray[Any, Any]:
    """Noise, or noise above a slope: bytes (height, width, 4)."""
    source = np.random.default_rng(rng.randrange(2**32))
    noise = source.integers(0, 256, (height, width, 4))
    if rng.random() < 0.5:
        slope = np.linspace(0, 255, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
        noise = (slope + noise / 8).clip(0, 255)
    return noise.astype(np.uint8)


def picture(seed: int) -> tuple[str, Any]:
    """(kind, Pillow image) number `seed`; the kinds take turns."""
    kind, rng = list(KINDS)[seed % len(KINDS)], random.Random(f"picture {seed}")
    four = values(rng, *size(rng))
    if kind in ("I;16", "I", "F"):
        deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]
        return kind, Image.fromarray(four[..., 0].astype(deep) * deep(rng.choice([1, 3, 257])))
    if kind == "CMYK":
        return kind, Image.frombytes("CMYK", four.shape[1::-1], four.tobytes())
    whole = Image.fromarray(four)  # RGBA
    if kind in ALPHA:
        return kind, whole.convert(kind)
    image = whole.convert("RGB").convert(kind.split()[0])
    if "half" in kind:
        image.info["transparency"] = bytes(rng.randrange(256) for _ in range(256))
    elif "see-through" in kind:
        image.info["transparency"] = image.getpixel((0, 0))
    return kind, image


def by_bytes(path: Path) -> str:
    """What transformers loads in place of a path: the file's bytes in base 64. Pillow maps no file into memory then.

    Mapped TIFFs are torn where they are turned on their side and not compressed, a defect of Pillow.
    """
    return base64.encodebytes(path.read_bytes()).decode()


def write(folder: Path, seed: int) -> tuple[str, Path]:
    """(kind, file) of picture number `seed`; most are turned by a tag."""
    kind, image = picture(seed)
    rng = random.Random(f"file {seed}")
    form = rng.choice(KINDS[kind])
    path = folder / f"{seed}.{form.lower()}"
    given: dict[str, Any] = {"quality": rng.randint(20, 95)} if form in ("JPEG", "WEBP") else {}
    if form in TURNED and rng.random() < 0.7:
        exif = Image.Exif()
        exif[ORIENTATION] = rng.randint(1, 8)
        given["exif"] = exif
    if "transparency" in image.info:
        given["transparency"] = image.info["transparency"]
    image.save(path, form, **given)
    return kind, path
