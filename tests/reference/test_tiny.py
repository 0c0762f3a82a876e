"""The tiny checkpoints: no two settings are equal, so that one read in another's place always shows."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest

from t5g2ref import bundled

SHARED = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "eoi_token_index", "image_token_index"}
"""Settings that config.json repeats, and that have to be one value wherever they stand."""


def numbers(node: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], float]]:
    """Every number of a config.json with its path."""
    if isinstance(node, dict):
        return [found for key, value in node.items() for found in numbers(value, (*path, key))]
    if isinstance(node, list):
        return [found for value in node for found in numbers(value, path)]
    return [(path, node)] if isinstance(node, (int, float)) and not isinstance(node, bool) else []


def setting(path: tuple[str, ...]) -> str:
    """One name for what is one setting: the ids and the vocabulary, and the width that both stacks share."""
    if path[-1] in SHARED:
        return path[-1]
    if path[-1] == "hidden_size" and "vision_config" not in path:
        return "hidden_size of both stacks"
    return ".".join(path)


@pytest.mark.parametrize("name", ["tiny", "tiny-even"])
def test_no_two_settings_are_equal(name: str) -> None:
    config = json.loads((bundled(name) / "config.json").read_text(encoding="utf-8"))
    values: dict[str, set[float]] = defaultdict(set)
    for path, number in numbers(config):
        values[setting(path)].add(number)
    assert all(len(found) == 1 for found in values.values()), "a shared setting differs between its places"
    holders: dict[float, list[str]] = defaultdict(list)
    for key, (number,) in values.items():
        holders[number].append(key)
    assert not {number: keys for number, keys in holders.items() if len(keys) > 1}
    # nothing fell through: each stack's own, the tower's, and what is said once
    stack = "intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim sliding_window "
    stack += "query_pre_attn_scalar max_position_embeddings rms_norm_eps"
    tower = "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size num_channels "
    tower += "layer_norm_eps"
    rope = ("sliding_attention.rope_theta", "full_attention.rope_theta", "full_attention.factor")
    expected = SHARED | {"hidden_size of both stacks", "encoder.boi_token_index", "encoder.mm_tokens_per_image"}
    for prefix in ("encoder.text_config", "decoder"):
        expected |= {f"{prefix}.{key}" for key in stack.split()}
        expected |= {f"{prefix}.rope_parameters.{key}" for key in rope}
    expected |= {f"encoder.vision_config.{key}" for key in tower.split()}
    assert set(values) - {"decoder.final_logit_softcapping"} == expected
