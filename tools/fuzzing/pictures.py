"""The class `picture`: image files through the processor."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from fuzzing import lawful, raw
from fuzzing.tries import Kind
from t5g2ref.notes import noted
from t5g2ref.processor.image import preprocess_all

SIDE = 28
SIDES = (0, 1, 2, 255, 4000, 9000, 9459, 9460, 20_000, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
PNG = b"\x89PNG\r\n\x1a\n"


def base(folder: Path) -> None:
    """Each format, in several modes."""
    rng = np.random.default_rng(5)
    photo = Image.fromarray(rng.integers(0, 255, (40, 90, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 60_000, (40, 90), np.uint16))
    long = photo.resize((600, 260))
    turned = Image.Exif()
    turned[0x0112] = 6
    for mode in ("RGB", "RGBA", "P", "L", "1", "I;16"):
        picture = deep if mode == "I;16" else photo.convert(mode)
        picture.save(folder / f"{mode.replace(';', '')}.png", exif=turned)
    photo.save(folder / "turned.jpg", exif=turned)
    long.save(folder / "long.jpg", progressive=True)
    photo.convert("CMYK").save(folder / "ink.jpg")
    photo.save(folder / "a.gif", save_all=True, append_images=[photo.rotate(90)])
    for name in ("plain.bmp", "plain.ppm", "plain.webp", "plain.tif"):
        photo.save(folder / name)
    for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        photo.save(folder / f"{how}.tif", compression=how)
    photo.convert("L").save(folder / "grey.pgm")


def spoil(rng: Random, base: Path, folder: Path) -> None:
    path = rng.choice(sorted(base.iterdir()))
    data, how = path.read_bytes(), rng.random()
    if how < 0.3:
        data = _sized(rng, data)
    if how > 0.2:
        data = raw.spoilt(rng, data)
    if data.startswith(PNG) and rng.random() < 0.7:
        data = _summed(data)
    (folder / f"picture{path.suffix}").write_bytes(data)


def _sized(rng: Random, data: bytes) -> bytes:
    """Other sides than the ones that the pixels bear out, where the format has them."""
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    out = bytearray(data)
    if data.startswith(PNG):
        out[16:24] = struct.pack(">II", width, height)
    elif data.startswith(b"BM"):
        out[18:26] = struct.pack("<II", width, height)
    elif data.startswith(b"GIF"):
        out[6:10] = struct.pack("<HH", width % 65_536, height % 65_536)
        at = out.find(b"\x2c", 13)
        out[at + 5 : at + 9] = out[6:10]
    elif data.startswith(b"\xff\xd8"):
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        out[at + 5 : at + 9] = struct.pack(">HH", height % 65_536, width % 65_536)
    elif data[12:16] == b"VP8 ":
        out[26:30] = struct.pack("<HH", width % 16_384, height % 16_384)
    elif data[:1] == b"P":
        out[:] = data.replace(b"90 40", f"{width} {height}".encode(), 1)
    elif data[:2] in (b"II", b"MM"):
        for side, other in ((90, width), (40, height)):
            out[:] = bytes(out).replace(struct.pack("<HII", 4, 1, side), struct.pack("<HII", 4, 1, other))
            out[:] = bytes(out).replace(struct.pack("<HII", 3, 1, side), struct.pack("<HII", 4, 1, other))
    return bytes(out)


def _summed(data: bytes) -> bytes:
    """A PNG whose chunks have their own sums again, so that what is in them is looked at."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        length = int.from_bytes(out[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


def read(folder: Path, base: Path) -> Any:
    path, said = next(folder.iterdir()), list[str]()
    try:
        with noted(said):
            pixels, crops = preprocess_all([str(path)], SIDE, pan_and_scan=True)
    except ValueError as error:
        if type(error) is not ValueError or not str(error).startswith(f"{path}: "):
            raise lawful.Unlawful(f"no refusal of ours: {error!r}"[:1500]) from error
        raise lawful.Refused(str(error)) from error
    lawful.notes(said)
    return pixels, crops


def verify(value: Any, folder: Path, base: Path) -> None:
    pixels, crops = value
    if pixels.shape != (1 + crops[0], 3, SIDE, SIDE) or not (np.abs(pixels) <= 1).all():
        raise lawful.FalsePass(f"pixels of shape {pixels.shape}, from {pixels.min()} to {pixels.max()}")


KIND = Kind("picture", 4, base, spoil, read, (), verify)
