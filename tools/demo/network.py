"""Transformers' T5Gemma 2 as it is trained: how it starts, what it is asked, and how it is written.

Masks are made here, because a row of pads in a window of pads attends to nothing: such a row sees itself instead. No
other row is changed by that, and no token that counts reads it. Rows of embeddings are made here, because transformers
waits for the device there. The numbers are the same, which a test sees to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import batches
import settings
import tokenizer
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

TIED = ("model.decoder.embed_tokens.", "lm_head.")


def fresh(device: str) -> T5Gemma2ForConditionalGeneration:
    """An untrained model in float32. Transformers would start the projector and the row of EOI at zero."""
    model = T5Gemma2ForConditionalGeneration(T5Gemma2Config.from_dict({**settings.config(), "dtype": "float32"}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("mm_input_projection_weight"):
                weight.normal_(std=weight.shape[0] ** -0.5)
            elif "eoi_embedding" in name:
                weight.normal_()
            elif weight.ndim == 2 and "vision_tower" not in name:  # embeddings are scaled by the root of their width
                weight.normal_(std=weight.shape[1] ** -0.5)
    return model.float().to(device)


def _encoder_masks(valid: Tensor) -> dict[str, Tensor]:
    """Both masks (B, 1, S, S) of the encoder for tokens (B, S) that are no pads."""
    place = torch.arange(valid.shape[1], device=valid.device)
    left, right = place[:, None] - place, place - place[:, None]
    window = settings.WINDOW
    near = ((left >= 0) & (left < (window + 1) // 2)) | ((right > 0) & (right < window // 2 + 1))
    self, keys = left == 0, valid[:, None, None, :]
    return {"full_attention": keys | self, "sliding_attention": (keys & near) | self}


def _decoder_masks(count: int, size: int, device: torch.device) -> dict[str, Tensor]:
    """Both masks (B, 1, T, T) of the decoder's own half; pads are behind and need no mask."""
    place = torch.arange(size, device=device)
    left = place[:, None] - place
    causal = (left >= 0).expand(count, 1, -1, -1)
    return {"full_attention": causal, "sliding_attention": causal & (left < settings.WINDOW)}


def _embedded(table: Any, ids: Tensor) -> Tensor:
    """What the model's own table gives for ids, without waiting for a device as its `forward` does."""
    rows = functional.embedding(ids, table.weight) * table.embed_scale
    return torch.where((ids == tokenizer.EOI)[..., None], table.eoi_embedding, rows)


def _encoded(encoder: Any, batch: batches.Batch, valid: Tensor) -> BaseModelOutput:
    """The encoder's output for a batch."""
    rows = _embedded(encoder.text_model.embed_tokens, batch.ids)
    if batch.pixels is not None:
        patches = encoder.vision_tower(pixel_values=batch.pixels).last_hidden_state
        places = (batch.ids == tokenizer.IMAGE)[..., None].expand_as(rows)
        rows = rows.masked_scatter(places, encoder.multi_modal_projector(patches))
    found: BaseModelOutput = encoder.text_model(inputs_embeds=rows, attention_mask=_encoder_masks(valid))
    return found


def logits(model: T5Gemma2ForConditionalGeneration, batch: batches.Batch) -> Tensor:
    """The logits (B, T, V) of every label, given the labels before it."""
    valid = batch.ids != tokenizer.PAD
    count, size = batch.labels.shape
    before = model.prepare_decoder_input_ids_from_labels(batch.labels)
    answer: Tensor = model(
        encoder_outputs=_encoded(model.model.encoder, batch, valid),
        attention_mask={"full_attention": valid[:, None, None, :].expand(-1, -1, size, -1)},
        decoder_attention_mask=_decoder_masks(count, size, valid.device),
        decoder_inputs_embeds=_embedded(model.model.decoder.embed_tokens, before),
        use_cache=False,
    ).logits
    return answer


def loss(model: T5Gemma2ForConditionalGeneration, batch: batches.Batch) -> Tensor:
    """The mean cross-entropy of a label; a row weighs as the root of its length."""
    each = functional.cross_entropy(
        logits(model, batch).transpose(1, 2), batch.labels, ignore_index=batches.IGNORED, reduction="none"
    )
    weight = (batch.labels != batches.IGNORED).sum(dim=1, keepdim=True).rsqrt() * (batch.labels != batches.IGNORED)
    return (each * weight).sum() / weight.sum()


@torch.no_grad()
def exact(model: T5Gemma2ForConditionalGeneration, batch: batches.Batch) -> float:
    """The part of rows whose every label is the likeliest. A greedy answer is exact for just these rows."""
    likeliest = logits(model, batch).argmax(dim=-1)
    right = (likeliest == batch.labels) | (batch.labels == batches.IGNORED)
    return float(right.all(dim=1).float().mean())


class Rounding:
    """The weights as bfloat16 has them while the block runs, and as they were afterwards: `with Rounding(model):`."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [weight.data for weight in model.parameters()]
        self.kept: list[Tensor] = []

    def __enter__(self) -> None:
        self.kept = [weight.clone() for weight in self.weights]
        torch._foreach_copy_(self.weights, [weight.bfloat16() for weight in self.weights])

    def __exit__(self, *_: object) -> None:
        torch._foreach_copy_(self.weights, self.kept)


def write(model: T5Gemma2ForConditionalGeneration, folder: Path) -> None:
    """Put the checkpoint into the folder, in bfloat16 and under the names that released files have."""
    weights = {}
    for name, weight in model.state_dict().items():
        if name.startswith(TIED):
            continue
        plain = name.replace("model.encoder.text_model.", "model.encoder.")
        if "vision_tower." in plain and "vision_model." not in plain:
            plain = plain.replace("vision_tower.", "vision_tower.vision_model.")
        weights[plain] = weight.detach().to("cpu", torch.bfloat16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings.config(), indent=2) + "\n", encoding="utf-8")
    tokenizer.write(folder, settings.IMAGE_SIZE, settings.TOKENS_PER_IMAGE)
