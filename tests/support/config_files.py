"""A config.json in both spellings, none of whose values is a default."""

from __future__ import annotations

import json
from typing import Any

TEXT = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "query_pre_attn_scalar": 14,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 9000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 80000.0, "factor": 4.0},
    },
    "pad_token_id": 7,
    "bos_token_id": 8,
    "eos_token_id": [9, 11],
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 2e-6,
    "vision_use_head": False,
}


def released() -> dict[str, Any]:
    """A config.json in the released spelling, none of whose values is a default."""
    encoder = {
        "text_config": TEXT,
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "boi_token_index": 150,
        "eoi_token_index": 151,
        "image_token_index": 199,
    }
    top = {"model_type": "t5gemma2", "image_token_index": 152, "encoder": encoder, "decoder": TEXT}
    out: dict[str, Any] = json.loads(json.dumps(top | {"is_encoder_decoder": True, "tie_word_embeddings": True}))
    return out  # a copy that shares no part


def old() -> dict[str, Any]:
    """The same model in the old spelling."""
    raw = released()
    for part in (raw["encoder"]["text_config"], raw["decoder"]):
        del part["layer_types"], part["rope_parameters"]
        part |= {"rope_theta": 80000.0, "rope_local_base_freq": 9000.0, "_sliding_window_pattern": 2}
        part["rope_scaling"] = {"type": "linear", "factor": 4.0}
    return raw


def put(raw: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Set a dotted field; ... removes it."""
    *parents, leaf = path.split(".")
    at = raw
    for name in parents:
        at = at[name]
    if value is ...:
        at.pop(leaf, None)
    else:
        at[leaf] = value
    return raw


T, D, V = "encoder.text_config", "decoder", "encoder.vision_config"
