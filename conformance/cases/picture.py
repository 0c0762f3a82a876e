"""Pictures as files, written here byte by byte: PNG in all its modes, and TIFF for CMYK.

Both keep every value, so that whoever decodes them has the same. Nothing is compressed: the bytes hang on no library.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t5g2ref.processor.rule import Rule

Array = np.ndarray[Any, Any]
PIXELS = "pixel_values"
"""What findings about pictures are found at."""

Prepared = Callable[[Path, Rule, int], Any]
"""A processor: from a picture file, the checkpoint's rule and the tower's side to values (3, side, side)."""

_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels → PNG's colour type; 3 is a palette's
_PALETTE = 3


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Args:
        name: of the file, with its ending.
        data: its bytes.
        width, height: as it is stored, whatever its EXIF tag says.
    """

    name: str
    data: bytes
    width: int
    height: int


def png(name: str, values: Array, *, palette: Array | None = None, orientation: int = 0) -> Picture:
    """A PNG file of values (height, width, channels), uint8 or uint16: 1 grey, 2 with alpha, 3 RGB, 4 with alpha.

    Args:
        palette: (256, 3) uint8, of which the one channel has the indices.
        orientation: EXIF's, 1 to 8; 0 for no tag.
    """
    height, width, channels = values.shape
    colour = _COLOURS[channels] if palette is None else _PALETTE
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # no filter
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, colour, 0, 0, 0))]
    chunks += [] if palette is None else [_chunk(b"PLTE", palette.tobytes())]
    chunks += [_chunk(b"eXIf", _exif(orientation))] if orientation else []
    chunks += [_chunk(b"IDAT", zlib.compress(lines.tobytes(), 0)), _chunk(b"IEND", b"")]
    return Picture(f"{name}.png", b"\x89PNG\r\n\x1a\n" + b"".join(chunks), width, height)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _exif(orientation: int) -> bytes:
    return b"II*\0" + struct.pack("<IH", 8, 1) + _entry(0x0112, 3, 1, orientation) + bytes(4)


def cmyk(name: str, values: Array) -> Picture:
    """A TIFF file of values (height, width, 4), uint8: cyan, magenta, yellow, black."""
    height, width, _ = values.shape
    entries = (
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 4, 8), (259, 3, 1, 1), (262, 3, 1, 5), (273, 4, 1, 16)),
        *((277, 3, 1, 4), (278, 4, 1, height), (279, 4, 1, values.nbytes)),
    )
    table = struct.pack("<H", len(entries)) + b"".join(_entry(*entry) for entry in entries) + bytes(4)
    head = b"II*\0" + struct.pack("<I", 16 + values.nbytes) + struct.pack("<4H", 8, 8, 8, 8)  # bits, at byte 8
    return Picture(f"{name}.tif", head + values.tobytes() + table, width, height)


def _entry(tag: int, kind: int, count: int, value: int) -> bytes:
    """An entry of a TIFF directory: kind 3 is a short, 4 a long."""
    return struct.pack("<HHI", tag, kind, count) + (
        struct.pack("<HH", value, 0) if kind == 3 and count == 1 else struct.pack("<I", value)
    )
