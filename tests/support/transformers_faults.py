"""transformers with one fault: each with the case that shows it and the first tap that has to fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers_patches import (
    Inject,
    causal_encoder,
    cross_padding_dropped_once_cached,
    decoder,
    decoder_padding_dropped_once_cached,
    encoder,
    erf_gelu,
    exchange_thetas,
    exchanged_gate_and_up,
    first_logits,
    first_picture_twice,
    first_row_s_positions,
    on_output,
    on_weight,
    one_nan,
    pooled_by_count,
    positions_counted_from_the_cache,
    rotated,
    scaled_images,
    window,
    window_over_cross,
    zeros_for_decoder_ids,
)

from conformance.cases.case import Case
from conformance.peers.torch.transformers import TransformersPeer


@dataclass(frozen=True)
class Fault:
    """One defect: how it is injected, the case that shows it, the first tap that must fail, its status and call."""

    name: str
    case: str
    tap: str
    inject: Inject
    status: str = "values"
    call: int = 0


ENC, DEC = "encoder.text_model", "decoder"
FAULTS = [
    Fault(
        "cross keys rotated",
        "short",
        f"{DEC}.layers.0.self_attn.cross_k_norm",
        on_output(lambda m: decoder(m).layers[0].self_attn.k_norm, rotated, call=1),
    ),
    Fault(
        "+ 1 dropped from one norm",
        "short",
        f"{DEC}.layers.1.pre_feedforward_layernorm",
        on_weight(lambda m: decoder(m).layers[1].pre_feedforward_layernorm.weight, lambda w: w - 1),
    ),
    Fault("window one short on the left", "window", f"{ENC}.layers.0.self_attn.mask", window(-1, 0), "mask"),
    Fault("window one long on the right", "window", f"{ENC}.layers.0.self_attn.mask", window(0, 1), "mask"),
    Fault(
        "EOI row scaled",
        "eoi",
        f"{ENC}.embed_tokens",
        on_weight(lambda m: encoder(m).embed_tokens.eoi_embedding, lambda w: w * 48**0.5),
    ),
    Fault("theta exchanged", "window", f"{ENC}.rotary_emb.full_attention.cos", exchange_thetas),
    Fault("erf GELU", "short", f"{DEC}.layers.3.mlp.act_fn", erf_gelu),
    Fault(
        "a NaN in one element",
        "short",
        f"{ENC}.layers.3.self_attn.o_proj",
        on_output(lambda m: encoder(m).layers[3].self_attn.o_proj, one_nan),
        "nan",
    ),
    Fault("encoder causal", "short", f"{ENC}.layers.0.self_attn.mask", causal_encoder, "mask"),
    Fault("window over the cross half", "window", f"{DEC}.layers.0.self_attn.mask", window_over_cross, "mask"),
    Fault("gate and up exchanged", "short", f"{ENC}.layers.2.mlp.gate_proj", exchanged_gate_and_up),
    Fault("image features scaled", "image", "encoder.multi_modal_projector.projected", scaled_images),
    Fault(
        "lm_head not tied: a stale copy",
        "short",
        "lm_head",
        lambda m, _: setattr(m.lm_head.out_proj, "weight", torch.nn.Parameter(m.lm_head.out_proj.weight + 0.01)),
    ),
    Fault(
        "one weight off in the last bit of bfloat16",
        "short",
        f"{DEC}.layers.4.self_attn.o_proj",
        on_weight(lambda m: decoder(m).layers[4].self_attn.o_proj.weight[5:6, 5:6], lambda w: w * (1 + 2**-7)),
    ),
    Fault(
        "padding dropped in the cross half once cached",
        "padded-left-cached",
        f"{DEC}.layers.0.self_attn.mask",
        cross_padding_dropped_once_cached,
        "mask",
        call=1,
    ),
    Fault(
        "decoder padding dropped once cached",
        "padded-left-cached",
        f"{DEC}.layers.0.self_attn.mask",
        decoder_padding_dropped_once_cached,
        "mask",
        call=1,
    ),
    Fault(
        "one row's positions for all, encoder",
        "far-positions",
        f"{ENC}.rotary_emb.full_attention.cos",
        first_row_s_positions(encoder),
    ),
    Fault(
        "one row's positions for all, decoder",
        "far-positions",
        f"{DEC}.rotary_emb.full_attention.cos",
        first_row_s_positions(decoder),
    ),
    Fault(
        "given positions ignored with a cache",
        "far-positions",
        f"{DEC}.rotary_emb.full_attention.cos",
        positions_counted_from_the_cache,
        call=1,
    ),
    Fault("pooled at the count of tokens", "sequence-multi", "logits", pooled_by_count),
    Fault("classifier's decoder ids all 0", "sequence-regression", f"{DEC}.embed_tokens", zeros_for_decoder_ids),
    Fault("logits of the first positions", "second-source", "lm_head", first_logits),
    Fault("first picture's features twice", "images", f"{ENC}.inputs_embeds", first_picture_twice),
]


class Faulty(TransformersPeer):
    """transformers with one fault."""

    def __init__(self, inject: Inject, patch: pytest.MonkeyPatch) -> None:
        super().__init__("sdpa")
        self.inject, self._patch = inject, patch

    def _build(self, case: Case) -> Any:
        model = super()._build(case)
        self.inject(model, self._patch)
        return model
