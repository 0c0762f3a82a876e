"""transformers' own `generate` for one prompt: greedy or beams, with the cache that the peer is asked to use."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from transformers import GenerationConfig

from conformance.cases.prompt import Answer, Prompt


def answered(model: Any, prompt: Prompt, device: str, dtype: torch.dtype, *, static: bool) -> Answer:
    """What the model's `generate` gives.

    A prompt that stops where the checkpoint says leaves that to the model, and so does one that begins as it does.
    """
    given = {
        "input_ids": prompt.input_ids,
        "attention_mask": prompt.attention_mask,
        "pixel_values": prompt.pixel_values,
        "decoder_input_ids": prompt.start,
    }
    inputs = {name: torch.tensor(value, device=device) for name, value in given.items() if value is not None}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    how: dict[str, Any] = {"max_new_tokens": prompt.new, "do_sample": False, "num_beams": prompt.beams}
    how |= {"num_return_sequences": prompt.beams, "output_logits": True, "output_scores": True}
    how |= {"return_dict_in_generate": True}
    if static:
        how |= {"cache_implementation": "static", "disable_compile": True}
    with ExitStack() as stack, torch.no_grad():
        if not prompt.stop:  # None as an argument would be filled in from the model's own
            own = GenerationConfig.from_dict(model.generation_config.to_dict() | {"eos_token_id": None})
            stack.enter_context(patch.object(model, "generation_config", own))
        elif set(prompt.stop) != set(_stops(model)):
            how["eos_token_id"] = list(prompt.stop)
        out = model.generate(**inputs, **how)
    return _answer(out, prompt)


def _stops(model: Any) -> list[int]:
    """The ids at which the model itself ends a row."""
    found = model.generation_config.eos_token_id
    return found if isinstance(found, list) else [] if found is None else [found]


def _answer(out: Any, prompt: Prompt) -> Answer:
    ids, steps = out.sequences, torch.stack(out.logits, dim=1)  # (B × beams, L, V)
    scores = None
    if prompt.beams > 1:
        at = out.beam_indices[:, : steps.shape[1]].clamp(min=0)  # −1 behind a row's end
        steps = torch.stack([steps[at[:, t], t] for t in range(at.shape[1])], dim=1)
        scores = out.sequences_scores.float().cpu().numpy()
    return Answer(ids.cpu().numpy(), steps.float().cpu().numpy(), scores=scores)
