"""An answer of a peer's own `generate` as a run along its ids, which every model can repeat."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.cases.case import Run
from conformance.cases.prompt import Prompt
from t5g2ref.config import Config

Array = np.ndarray[Any, Any]


def ended(ids: Array, start: int, stop: tuple[int, ...]) -> Array:
    """bool, the shape of ids (R, T): whether the row has one of the stop ids there or before, behind its start."""
    ends = np.isin(ids, stop)
    ends[:, :start] = False
    return np.asarray(np.logical_or.accumulate(ends, axis=1))


def forced(prompt: Prompt, ids: Array, config: Config) -> Run:
    """The run along an answer's own ids (rows, n + L), cached and a step a call as `generate` has it: each call's last
    logits are those that its next id was chosen from. Where a row has ended nothing is valid."""
    n = prompt.begin(config).shape[1]
    valid = ~ended(ids, n, prompt.stop)[:, :-1]
    mask = prompt.attention_mask
    return Run(
        np.repeat(prompt.input_ids, prompt.beams, axis=0),
        ids[:, :-1],
        None if mask is None else np.repeat(mask, prompt.beams, axis=0),
        pixel_values=pictures(prompt, config),
        decoder_attention_mask=None if valid.all() else valid.astype(np.int64),
        splits=(n,) + (1,) * (ids.shape[1] - 1 - n),
        logits_to_keep=1,
    )


def pictures(prompt: Prompt, config: Config) -> Array | None:
    """Each row's pictures as often as the row has beams, in the order of the rows; None where there are none."""
    if prompt.pixel_values is None:
        return None
    blocks = np.split(prompt.pixel_values, np.cumsum(images_of(prompt.input_ids, config))[:-1])
    return np.concatenate([block for block in blocks for _ in range(prompt.beams)])


def images_of(ids: Array, config: Config) -> list[int]:
    """How many pictures each row of ids (B, S) has."""
    tokens = (ids == config.image_token_index).sum(axis=1)
    return [int(count) // config.mm_tokens_per_image for count in tokens]
