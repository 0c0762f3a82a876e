"""The small geometries of the tests, and seeded weights for them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from helpers import Array, frozen, generator, rounded

from t5g2ref import params
from t5g2ref.config import Config, Rope, Ropes, TextConfig, VisionConfig

S, F = "sliding_attention", "full_attention"


def small_config() -> Config:
    """No two sizes that could be mistaken for each other are equal: kv heads ≥ 2 and groups ≥ 2 (2 and 4), head_dim is
    not hidden / heads, an odd and an even window, two thetas and a factor a stack, pad 3 and not 0."""
    encoder = TextConfig(
        vocab_size=311,
        hidden_size=48,
        intermediate_size=88,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=14,
        max_position_embeddings=256,
        rms_norm_eps=2e-3,
        query_pre_attn_scalar=20.0,
        sliding_window=7,
        layer_types=(S, F, S, S, F),
        rope_parameters=Ropes(Rope(777.0), Rope(31_000.0, 4.0)),
        pad_token_id=3,
        bos_token_id=6,
        eos_token_id=(4,),
    )
    decoder = replace(
        encoder,
        intermediate_size=68,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=192,
        rms_norm_eps=5e-3,
        query_pre_attn_scalar=12.0,
        sliding_window=6,
        layer_types=(S, S, F, S, F, S),
        rope_parameters=Ropes(Rope(1234.0), Rope(52_000.0, 6.0)),
        final_logit_softcapping=30.0,
    )
    return Config(
        encoder,
        decoder,
        VisionConfig(36, 56, 3, 3, image_size=32, patch_size=4, layer_norm_eps=1e-3),
        mm_tokens_per_image=16,
        boi_token_index=300,
        eoi_token_index=301,
        image_token_index=302,
        num_labels=5,
    )


def smallest_config() -> Config:
    """The same with two layers a stack, both stacks alike and a table of 61 rows: for tests that write whole files."""
    small = small_config()
    sizes = {"vocab_size": 61, "hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 2}
    text = replace(small.encoder, **sizes, layer_types=(S, F))
    ids = {"boi_token_index": 50, "eoi_token_index": 51, "image_token_index": 52}
    vision = replace(small.vision, num_hidden_layers=2)
    return replace(small, encoder=text, decoder=text, vision=vision, num_labels=3, **ids)


@cache
def weight(name: str, shape: tuple[int, ...]) -> Array:
    """One parameter, seeded by its name: float32 on the bfloat16 grid, so that every precision runs the same model.

    All non-zero: a norm weight, bias or EOI row of zeros would hide its own absence.
    """
    if name.endswith("embed_tokens.weight"):
        scale = 0.5  # logits then spread over about 3.5, inside the softcap of 30
    elif len(shape) > 1 and "position_embedding" not in name:
        last = shape[0] if name.endswith("mm_input_projection_weight") else int(np.prod(shape[1:]))
        scale = last**-0.5
    else:
        scale = 0.3
    values = rounded(generator(name).normal(size=shape).astype(np.float32) * np.float32(scale), "bfloat16")
    assert np.all(values != 0), name
    return frozen(values)


def seeded_weights(config: Config) -> dict[str, Array]:
    """Every parameter of this geometry, the classification head included."""
    return {name: weight(name, shape) for name, shape in params.shapes(config, "classification").items()}


def one_layer_each() -> Config:
    """The small geometry with one layer of each type in both text stacks, and two in the tower."""
    config = small_config()
    text = {"num_hidden_layers": 2, "layer_types": (S, F)}
    vision = replace(config.vision, num_hidden_layers=2)
    return replace(
        config, encoder=replace(config.encoder, **text), decoder=replace(config.decoder, **text), vision=vision
    )
