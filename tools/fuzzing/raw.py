"""Spoils bytes, knowing nothing of what they mean. Every choice is the random generator's, so a seed repeats it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Change = Callable[[Random, bytearray], None]
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32_767, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1)
MARKS = b'\x00\xff\x7f\x80\n\r\t "\\{}[]:,.-+eE0123456789/*='
LONGEST = 1 << 16  # bytes that one change adds at a time


def spoilt(rng: Random, data: bytes, most: int = 4) -> bytes:
    """The bytes after one to `most` changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, most)):
        rng.choice(CHANGES)(rng, out)
    return bytes(out)


def span(rng: Random, data: bytearray, longest: int = LONGEST) -> tuple[int, int]:
    """A stretch of the data: its begin and end; most are short."""
    begin = rng.randint(0, len(data))
    length = rng.choice((1, 2, 4, 8, 16, 64, longest))
    return begin, min(len(data), begin + rng.randint(1, length))


def _flip(rng: Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _mark(rng: Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(MARKS)


def _cut(rng: Random, data: bytearray) -> None:
    del data[rng.randint(0, len(data)) :]


def _remove(rng: Random, data: bytearray) -> None:
    begin, end = span(rng, data)
    del data[begin:end]


def _insert(rng: Random, data: bytearray) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64, 1024)))


def _repeat(rng: Random, data: bytearray) -> None:
    begin, end = span(rng, data, 256)
    data[end:end] = bytes(data[begin:end]) * rng.choice((1, 2, 16, 200))


def _swap(rng: Random, data: bytearray) -> None:
    (begin, end), (other, last) = sorted((span(rng, data, 64), span(rng, data, 64)))
    if end <= other:
        data[begin:last] = data[other:last] + data[end:other] + data[begin:end]


def _number(rng: Random, data: bytearray) -> None:
    """A whole number in binary, over what was there; mostly near the front, where lengths are."""
    width = rng.choice((1, 2, 4, 8))
    near = min(len(data), 64) if rng.random() < 0.7 else len(data)
    at = rng.randint(0, max(0, near - width))
    value = rng.choice(NUMBERS) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


CHANGES: tuple[Change, ...] = (_flip, _flip, _mark, _cut, _remove, _insert, _repeat, _swap, _number)
