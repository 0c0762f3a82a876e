"""The tiny checkpoints: no two settings are equal, so that one read in another's place always shows."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5g2ref import bundled
from t5g2ref.checkpoint.folder import Checkpoint
from t5g2ref.config import PRESETS, Config

SHARED = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "eoi_token_index", "image_token_index"}
"""Settings that config.json repeats, and that have to be one value wherever they stand."""


TRAINING = {"dropout_rate", "attention_dropout", "classifier_dropout_rate", "initializer_range"}
"""Settings that no inference reads, as the releases have them."""


def numbers(node: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], float]]:
    """Every number of a config.json with its path."""
    if isinstance(node, dict):
        items = [(key, value) for key, value in node.items() if key not in TRAINING]
        return [found for key, value in items for found in numbers(value, (*path, key))]
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


BOILERPLATE = {
    "_sliding_window_pattern",  # 5.1.0 writes it, 5.24.0 does not
    *("_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label", "label2id", "return_dict"),
    *("is_encoder_decoder", "output_attentions", "output_hidden_states", "problem_type", "transformers_version"),
}
"""What transformers writes of every model's every part."""


def parts(node: dict[str, Any], where: str = "") -> dict[str, dict[str, Any]]:
    """Path of each object → its plain entries."""
    found = {where: {key: value for key, value in node.items() if not isinstance(value, dict)}}
    for key, value in node.items():
        if isinstance(value, dict) and key not in BOILERPLATE:
            found |= parts(value, f"{where}.{key}".removeprefix("."))
    return found


@pytest.mark.peer
@pytest.mark.parametrize("name", ["tiny", "tiny-even", "tiny-released", "tiny-encoder", "demo"])
def test_it_has_what_transformers_saves(name: str, tmp_path: Path) -> None:
    """A port reads `dropout_rate` or the top level's `vocab_size` as it finds them in any other checkpoint."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: it saves the configuration")
    from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig

    kind = T5Gemma2EncoderConfig if name == "tiny-encoder" else transformers.T5Gemma2Config
    kind.from_pretrained(bundled(name)).save_pretrained(tmp_path)
    saved, ours = (parts(json.loads((folder / "config.json").read_text())) for folder in (tmp_path, bundled(name)))
    assert set(saved) == set(ours)
    for place, entries in saved.items():
        lacking = {key: value for key, value in entries.items() if ours[place].get(key, "none") != value}
        assert set(lacking) <= BOILERPLATE, (place, lacking)
        assert not set(ours[place]) & BOILERPLATE - set(entries)


@pytest.mark.peer
def test_transformers_finds_every_weight_of_the_encoder_alone() -> None:
    """It knows one spelling of the names, and initialises what it does not find, silently."""
    pytest.importorskip("transformers", reason="needs transformers: it reads the file")
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

    model, info = T5Gemma2Encoder.from_pretrained(bundled("tiny-encoder"), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = Checkpoint.open(bundled("tiny-released")).read("encoder.text_model.norm.weight", "float32")
    np.testing.assert_array_equal(model.text_model.norm.weight.detach().float().numpy(), ours)


SMALLER = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "layer_types", "sliding_window"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "query_pre_attn_scalar", "image_size"),
    *("mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"),
    *("encoder", "decoder", "vision"),
}
"""Settings of `tiny-released` that are not the release's: sizes and what follows them, and ids of pictures."""


def test_tiny_released_has_the_released_settings() -> None:
    """An engine that has these built in, and reads none of them, has to be right on it."""
    ours, release = Config.load(bundled("tiny-released")), PRESETS["270m"]
    assert ours.encoder == ours.decoder
    for one, other in ((ours, release), (ours.decoder, release.decoder), (ours.vision, release.vision)):
        differing = {name for name, value in vars(one).items() if getattr(other, name) != value}
        assert differing <= SMALLER, differing - SMALLER
    assert ours.decoder.query_pre_attn_scalar == ours.decoder.head_dim
    assert ours.decoder.sliding_window % 2 == 0, "as the released windows"
    layers = len(ours.decoder.layer_types)
    assert ours.decoder.layer_types == release.decoder.layer_types[:layers]
    assert {"sliding_attention", "full_attention"} == set(ours.decoder.layer_types)
    assert ours.decoder.groups > 1 < ours.decoder.num_key_value_heads, "or the order of grouped heads is hidden"


def test_tiny_released_is_small_and_asked_for_by_name() -> None:
    assert (bundled("tiny-released") / "model.safetensors").stat().st_size < 1_500_000
