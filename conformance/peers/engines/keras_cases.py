"""Brings a case into the form that KerasHub is given, and its values into that of the taps."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
HIDDEN = -1e8  # an additive mask has 0, -1e9 or a sum of such


def inputs(run: dict[str, Any], config: dict[str, Any]) -> dict[str, Array]:
    """The run's inputs as KerasHub's preprocessor would give them, and as `real` the numbers of the given pictures.

    Each row has as many pictures as the row with most, and at least one: those that are not given are zero.
    """
    named = {}
    for side, prefix in (("encoder", ""), ("decoder", "decoder_")):
        ids = run[f"{prefix}input_ids"]
        mask = run.get(f"{prefix}attention_mask")
        named[f"{side}_token_ids"] = ids.astype(np.int32)
        named[f"{side}_padding_mask"] = np.ones(ids.shape, np.int32) if mask is None else mask.astype(np.int32)
    return named | _pictures(run, config)


def _pictures(run: dict[str, Any], config: dict[str, Any]) -> dict[str, Array]:
    size, tokens = config["encoder"]["vision_config"]["image_size"], config["encoder"]["mm_tokens_per_image"]
    at = [np.flatnonzero(row == config["image_token_index"]) for row in run["input_ids"]]
    most = max(1, *(len(row) // tokens for row in at), 1)
    images = np.zeros((len(at), most, size, size, 3), np.float32)
    indices = np.zeros((len(at), most * tokens), np.int32)
    real: list[int] = []
    for row, held in enumerate(at):
        indices[row, : len(held)] = held
        for number in range(len(held) // tokens):
            images[row, number] = run["pixel_values"][len(real)].transpose(1, 2, 0)
            real.append(row * most + number)
    return {"images": images, "vision_indices": indices, "real": np.array(real, int)}


def arranged(
    taken: dict[str, Array], given: dict[str, Array], bounds: tuple[int, int], cached: bool, config: dict[str, Any]
) -> dict[str, Array]:
    """The values of a call by tap. What no picture was given for is left out, and cross keys that were kept."""
    real, (first, last) = given["real"], bounds
    out: dict[str, Array] = {"decoder_input_ids": given["decoder_token_ids"][:, first:last]}
    if first == 0:
        out["input_ids"] = given["encoder_token_ids"]
    for name, value in taken.items():
        if name.startswith(("encoder.vision_tower", "encoder.multi_modal")):
            if len(real):
                out[name] = value[real].reshape(len(real), -1, value.shape[-1])
        elif name.endswith(".mask"):
            out[name] = _mask(name, value, given, bounds, cached, config)
        else:
            out[name] = value
    return out


def _mask(
    name: str, value: Array, given: dict[str, Array], bounds: tuple[int, int], cached: bool, config: dict[str, Any]
) -> Array:
    """An additive mask as truths (B, T, S). Slots of a preallocated cache that no query sees are left out."""
    first, last = bounds
    rows, length = given["encoder_token_ids"].shape
    seen = value[:, 0] > HIDDEN
    if name.startswith("encoder."):
        return np.ascontiguousarray(np.broadcast_to(seen, (rows, length, length)))
    if cached:
        sliding = config["decoder"]["layer_types"][int(name.split(".")[2])] == "sliding_attention"
        begin = max(0, first - config["decoder"]["sliding_window"] + 1) if sliding else 0
        own, cross = seen[..., :-length], seen[..., -length:]
        if not own[..., :begin].any() and not own[..., last:].any():
            seen = np.concatenate([own[..., begin:last], cross], axis=-1)
    return np.ascontiguousarray(seen)
