"""Sources to generate from: of several lengths, and with pictures; and ids that end their answers."""

from __future__ import annotations

import numpy as np
from helpers import Array, generator
from strict_arrays import StrictBackend

import t5g2ref
from conformance.checkpoints import resolve
from t5g2ref.generate.beam import beam_search
from t5g2ref.generate.hypotheses import Search
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics

STEPS = 10


def ragged(model: T5Gemma2, seed: int, lengths: tuple[int, ...] = (13, 4, 9)) -> dict[str, Array]:
    """Sources of several lengths, padded on the left, with their mask."""
    ids = generator(f"beams {seed}").integers(40, 290, (len(lengths), max(lengths)))
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, -length:] = 1
    return {"input_ids": np.where(mask == 1, ids, model.config.decoder.pad_token_id), "attention_mask": mask}


def pictured(model: T5Gemma2, seed: int) -> dict[str, Array]:
    """Two sources with one picture each, of which the second is shorter and padded."""
    c = model.config
    block = [c.boi_token_index, *[c.image_token_index] * c.mm_tokens_per_image, c.eoi_token_index]
    ids = np.array([[50 + seed, 17, *block, 40, 41], [c.decoder.pad_token_id] * 2 + [5, *block, 60 + seed]])
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    side = c.vision.image_size
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": generator(f"pictures {seed}").uniform(-1, 1, (2, 3, side, side)).astype(np.float32),
    }


def common(model: T5Gemma2, given: dict[str, Array], count: int) -> tuple[int, ...]:
    """Ids that answers have often, of a search that no id ends; as ends they end answers apart."""
    free = beam_search(model, **given, search=Search(4), max_new_tokens=STEPS, stop=())
    found, times = np.unique(free.ids[:, 3:], return_counts=True)
    return tuple(int(i) for i in found[np.argsort(-times, kind="stable")][1 : 1 + count])


def host_and_device() -> tuple[T5Gemma2, T5Gemma2]:
    """tiny on NumPy, and on an array library with CuPy's rules; both in float64."""
    target, made = resolve("tiny", synthetic=False)[0], []
    for nx in (Numerics(), Numerics(backend=StrictBackend())):
        weights = {name: nx.array(weight) for name, weight in target.weights.items()}
        made.append(T5Gemma2(target.config, t5g2ref.params.tree(weights), nx))
    return made[0], made[1]
