"""Inputs for the small geometry of `geometry.py`, and when two runs on them count as equal.

NOISE: two float64 runs that differ in the order of sums alone (another split, batch or layout) differ by u = 1.1e-16 an
operation, which eleven layers of norms and products magnify; 1e-12 of the largest value is 10⁴ u, found is 1e-15. A
defect of the catalogue moves 1e-3 and more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from helpers import Array, close, frozen, generator

from t5g2ref.cache import Cache
from t5g2ref.config import Config, TextConfig
from t5g2ref.model import T5Gemma2

Factory = Callable[..., T5Gemma2]
NOISE = 1e-12
SLIDING, FULL = "sliding_attention", "full_attention"
PAD, BOS, BOI, EOI, IMAGE = 3, 6, 300, 301, 302


def tokens(name: str, batch: int, length: int) -> Array:
    """Ordinary ids behind a bos: none of them special."""
    ids = generator(name).integers(7, 300, (batch, length))
    ids[:, 0] = BOS
    return frozen(ids)


def pictures(name: str, count: int) -> Array:
    """Pixels without any symmetry, float32 in [−1, 1]."""
    return frozen(generator(name).uniform(-1, 1, (count, 3, 32, 32)), "float32")


def image_ids() -> Array:
    """Two rows, three images: two in the first, one in the second, all M = 16 tokens long, with boi and eoi."""
    block = [BOI, *[IMAGE] * 16, EOI]
    return frozen([[BOS, 9, *block, 11, *block, 12], [BOS, 21, 22, *block, *range(23, 42)]])


def ragged(shape: tuple[int, ...], side: str) -> Array:
    """A mask (B, T): row b lacks 4 b positions on one side, or every third one."""
    mask = np.ones(shape, np.int64)
    for row in range(1, shape[0]):
        where = {"left": slice(0, 4 * row), "right": slice(shape[1] - 4 * row, None), "inside": slice(row, None, 3)}[
            side
        ]
        mask[row, where] = 0
    return frozen(mask)


BOTH = {"input_ids": image_ids(), "decoder_input_ids": tokens("b", 2, 12), "pixel_values": pictures("p", 3)}


def near(actual: Any, expected: Any) -> None:
    """Equal up to NOISE; see above."""
    close(actual, expected, atol=NOISE * float(np.abs(expected).max()))


def one_layer(config: Config, stack: str, kind: str, window: int | None = None) -> Config:
    """The same geometry with a single layer in one stack."""
    text: TextConfig = getattr(config, stack)
    text = replace(text, num_hidden_layers=1, layer_types=(kind,), sliding_window=window or text.sliding_window)
    return replace(config, **{stack: text})


def steps(net: T5Gemma2, cache: Cache, ids: Array, mask: Array, cuts: list[int]) -> tuple[Array, Cache]:
    parts = []
    for first, last in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        hidden, cache = net.decode(ids[:, first:last], cache, mask[:, first:last])
        parts.append(hidden)
    return np.concatenate(parts, axis=1), cache
