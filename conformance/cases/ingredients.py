"""Draws the inputs of a case for a geometry: ids, padded rows, pictures, and rows that hold pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from t5g2ref.config import Config

Array = np.ndarray[Any, Any]


LOGITS = 1 << 24  # more than so many in one call, and only the last 16 positions get theirs


@cache
def _others_than(special: frozenset[int], vocab_size: int) -> Array:
    """Every id that is not special, read-only; made once for all of a quarter of a million ids."""
    plain = np.ones(vocab_size, bool)
    plain[[token for token in special if token < vocab_size]] = False
    ids = np.flatnonzero(plain)
    ids.setflags(write=False)
    return ids


@dataclass(frozen=True)
class Kit:
    """Draws inputs for one case on one geometry."""

    config: Config
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def ordinary(self, *shape: int) -> Array:
        """Tokens of which none is special, int64 of this shape."""
        c = self.config
        special = {c.boi_token_index, c.eoi_token_index, c.image_token_index, c.decoder.pad_token_id}
        special |= {c.decoder.bos_token_id, *c.decoder.eos_token_id}
        return self.rng.choice(_others_than(frozenset(special), c.decoder.vocab_size), size=shape).astype(np.int64)

    def others(self, ids: Array) -> Array:
        """Ordinary tokens that differ from `ids` everywhere."""
        found = self.ordinary(*ids.shape)
        while (same := found == ids).any():
            found = np.where(same, self.ordinary(*ids.shape), found)
        return found

    def ids(self, batch: int, length: int) -> Array:
        """Ordinary tokens behind a bos: (batch, length) without any other special id."""
        ids = self.ordinary(batch, length)
        ids[:, 0] = self.config.decoder.bos_token_id
        return ids

    def padded(self, lengths: list[int], side: str) -> tuple[Array, Array]:
        """Ragged rows padded on one side: ids and mask, both (batch, longest). The longest has an id 0 behind its bos,
        which is a token like any other."""
        ids, mask = self.ids(len(lengths), max(lengths)), np.zeros((len(lengths), max(lengths)), np.int64)
        for row, n in enumerate(lengths):
            kept = slice(0, n) if side == "right" else slice(max(lengths) - n, None)
            mask[row, kept] = 1
            ids[row, kept.start] = self.config.decoder.bos_token_id
        ids[int(np.argmax(lengths)), 1] = 0
        return np.where(mask == 1, ids, self.config.decoder.pad_token_id), mask

    def keep(self, positions: int) -> int | None:
        """`logits_to_keep` of a call with so many decoder positions in all rows."""
        return 16 if positions * self.config.decoder.vocab_size > LOGITS else None

    def pixels(self, images: int) -> Array:
        """Pictures unlike their own mirror and transpose: a slanted ramp under noise, float32 in [-1, 1]."""
        v = self.config.vision
        y, x = np.mgrid[0 : v.image_size, 0 : v.image_size] / v.image_size
        ramp = 0.7 * x + 0.3 * y**2 - 0.5
        noise = self.rng.integers(0, 256, (images, v.num_channels, v.image_size, v.image_size)) / 255.0 - 0.5
        return np.asarray(np.clip(ramp + noise, -1, 1), np.float32)

    def image_row(self, words: int, images: int) -> Array:
        """One row (1, S): words, then per image boi, image tokens, eoi, then words."""
        c = self.config
        block = [c.boi_token_index, *[c.image_token_index] * c.mm_tokens_per_image, c.eoi_token_index]
        parts = [self.ids(1, words)[0]]
        for _ in range(images):
            parts += [np.array(block), self.ids(1, words)[0][1:]]
        return np.concatenate(parts)[None].astype(np.int64)
