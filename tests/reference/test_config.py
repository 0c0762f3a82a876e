"""config: both spellings, their values and defaults, and agreement with transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from config_files import D, T, old, put, released

from t5g2ref.config import PRESETS, Config, ConfigError, Rope, TextConfig, VisionConfig, preset


def test_released_values() -> None:
    config = Config.from_dict(released())
    text = config.encoder
    assert config.decoder == text
    assert (text.hidden_size, text.groups, text.head_dim, text.query_pre_attn_scalar) == (48, 2, 10, 14.0)
    assert (text.window("sliding_attention"), text.window("full_attention")) == (5, None)
    ropes = {"sliding_attention": Rope(9000.0), "full_attention": Rope(80000.0, 4.0)}
    assert dict(text.rope_parameters) == ropes
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id) == (7, 8, (9, 11))
    assert (config.vision.patches_per_side, config.vision.head_dim, config.tokens_per_side) == (4, 4, 2)
    ids = (config.boi_token_index, config.eoi_token_index, config.image_token_index)
    assert ids == (150, 151, 152)  # the top level's image id wins over the encoder's 199
    assert (config.num_labels, config.problem_type, config.dtype) == (2, None, None)


@pytest.mark.parametrize("name", ["_sliding_window_pattern", "sliding_window_pattern"])
@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_old_spelling_is_the_same_model(name: str, kind: str) -> None:
    raw = old()
    for part in (raw["encoder"]["text_config"], raw["decoder"]):
        part[name] = part.pop("_sliding_window_pattern")
        part["rope_scaling"] = {kind: "linear", "factor": 4}
    assert Config.from_dict(raw) == Config.from_dict(released())


def test_defaults_are_the_releases() -> None:
    raw = released()
    for part in (raw["encoder"]["text_config"], raw["decoder"]):
        part |= {"vocab_size": 262_144, "num_hidden_layers": 7}
        for name in (
            "rope_parameters",
            "layer_types",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
            "rms_norm_eps",
        ):
            del part[name]
    for name in ("boi_token_index", "eoi_token_index", "image_token_index"):
        del raw["encoder"][name]
    del raw["image_token_index"]
    config = Config.from_dict(raw)
    assert config.decoder.layer_types == ("sliding_attention",) * 5 + ("full_attention", "sliding_attention")
    thetas = {kind: (rope.theta, rope.factor) for kind, rope in config.encoder.rope_parameters.items()}
    assert thetas == {"sliding_attention": (1e4, 1.0), "full_attention": (1e6, 1.0)}
    assert (config.decoder.pad_token_id, config.decoder.bos_token_id, config.decoder.eos_token_id) == (
        0,
        2,
        (1,),
    )
    ids = (config.boi_token_index, config.eoi_token_index, config.image_token_index)
    assert ids == (255_999, 256_000, 256_001)
    assert config.decoder.rms_norm_eps == 1e-6


def test_null_window_where_nothing_slides() -> None:
    raw = released()
    for part in (raw["encoder"]["text_config"], raw["decoder"]):
        part |= {"sliding_window": None, "layer_types": ["full_attention"] * 4}
    assert Config.from_dict(raw).encoder.window("full_attention") is None


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("dtype", "bfloat16", "bfloat16"),
        ("torch_dtype", "torch.float16", "float16"),
        ("encoder.text_config.dtype", "bfloat16", "bfloat16"),
        ("decoder.torch_dtype", "float32", "float32"),
    ],
)
def test_dtype_wherever_it_is(path: str, value: str, expected: str) -> None:
    assert Config.from_dict(put(released(), path, value)).dtype == expected


def test_labels() -> None:
    assert Config.from_dict(put(released(), "num_labels", 5)).num_labels == 5
    assert Config.from_dict(put(released(), "id2label", {"0": "a", "1": "b", "2": "c"})).num_labels == 3


@pytest.mark.parametrize("spelling", ["released", "old"])
def test_round_trip(tmp_path: Path, spelling: Any) -> None:
    labels: dict[str, Any] = {"num_labels": 3, "problem_type": "regression", "dtype": "float16"}
    for config in (*PRESETS.values(), dataclasses.replace(Config.from_dict(released()), **labels)):
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict(spelling)))
        assert Config.load(tmp_path) == config


def test_the_old_spelling_refuses_what_it_cannot_say() -> None:
    config = Config.from_dict(put(released(), f"{D}.layer_types", ["full_attention"] * 3 + ["sliding_attention"]))
    with pytest.raises(ConfigError, match=r"decoder\.layer_types is .* every n-th"):
        config.to_dict("old")
    linear = {"rope_type": "linear", "factor": 2.0}
    config = Config.from_dict(put(released(), f"{T}.rope_parameters.sliding_attention", linear))
    with pytest.raises(ConfigError, match=r"encoder\.text_config\.rope_parameters\.sliding_attention\.factor is 2"):
        config.to_dict("old")
    with pytest.raises(ValueError, match="'older'"):
        config.to_dict("older")  # type: ignore[arg-type]


def test_presets() -> None:
    rows = {
        name: (
            config.encoder.hidden_size,
            len(config.decoder.layer_types),
            config.encoder.num_attention_heads,
            config.encoder.num_key_value_heads,
            config.encoder.sliding_window,
            config.decoder.layer_types.count("full_attention"),
        )
        for name, config in PRESETS.items()
    }
    assert rows == {
        "270m": (640, 18, 4, 1, 512, 3),
        "1b": (1152, 26, 4, 1, 512, 4),
        "4b": (2560, 34, 8, 4, 1024, 5),
    }
    assert preset("1b") is PRESETS["1b"]
    with pytest.raises(ConfigError, match="'2b'; there are 270m, 1b, 4b"):
        preset("2b")


def _compare_text(ours: TextConfig, theirs: Any) -> None:
    for field in dataclasses.fields(TextConfig):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "rope_parameters":
            mine = {kind: (rope.theta, rope.factor) for kind, rope in mine.items()}
            other = {kind: (rope["rope_theta"], rope.get("factor", 1.0)) for kind, rope in other.items()}
        elif field.name == "eos_token_id":
            other = tuple(other) if isinstance(other, list) else (other,)
        elif field.name == "layer_types":
            other = tuple(other)
        assert mine == other, field.name


@pytest.mark.parametrize("spelling", ["released", "old"])
@pytest.mark.parametrize("name", ["tiny", "270m", "4b"])
@pytest.mark.usefixtures("peer_installed")
def test_transformers_reads_the_same_values(tmp_path: Path, spelling: Any, name: str) -> None:
    import transformers

    tiny = dataclasses.replace(Config.from_dict(released()), num_labels=3, dtype="float16")
    config = tiny if name == "tiny" else preset(name)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(spelling)))
    theirs = transformers.T5Gemma2Config.from_pretrained(tmp_path)
    _compare_text(config.encoder, theirs.encoder.text_config)
    _compare_text(config.decoder, theirs.decoder)
    for field in dataclasses.fields(VisionConfig):
        assert getattr(config.vision, field.name) == getattr(theirs.encoder.vision_config, field.name)
    for name in ("mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"):
        assert getattr(config, name) == getattr(theirs.encoder, name)
    assert (config.image_token_index, config.num_labels) == (theirs.image_token_index, theirs.num_labels)
    assert str(theirs.dtype) == f"torch.{config.dtype}"
    theirs.save_pretrained(tmp_path / "again")
    assert Config.load(tmp_path / "again") == config
