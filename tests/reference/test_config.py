"""config: both spellings, every refusal with its field, value and remedy, and agreement with transformers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref.config import PRESETS, Config, ConfigError, Rope, TextConfig, VisionConfig, preset

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


T, D, V = "encoder.text_config", "decoder", "encoder.vision_config"
REFUSED = [
    # field to set, value, field named in the message (None: the same), words of the message
    (f"{T}.attention_bias", True, None, "no release has them"),
    (f"{D}.attention_bias", 1, None, "no release has them"),
    (f"{D}.hidden_activation", "gelu", None, "'gelu_pytorch_tanh'"),
    (f"{T}.hidden_act", "silu", None, "'gelu_pytorch_tanh'"),
    (f"{V}.hidden_act", "gelu", None, "tanh GELU"),
    (f"{T}.rope_parameters.full_attention.rope_type", "yarn", None, "'default' or 'linear'"),
    (f"{T}.rope_parameters.full_attention.factor", 0, None, "above 0"),
    (f"{T}.rope_parameters.full_attention.factor", -1.0, None, "above 0"),
    (f"{T}.rope_parameters.full_attention.factor", ..., None, "missing"),
    (f"{T}.rope_parameters.sliding_attention.factor", 2.0, None, "'linear'"),
    (f"{T}.rope_parameters.sliding_attention.rope_theta", 0.0, None, "above 0"),
    (f"{D}.rope_parameters.sliding_attention.rope_theta", float("nan"), None, "finite"),
    (f"{T}.rope_parameters.sliding_attention.rope_theta", "1e4", None, "finite number"),
    (f"{T}.rope_parameters.full_attention.attention_factor", 2.0, None, "no such field"),
    (f"{T}.rope_parameters.rope_theta", 1e4, None, "key it by"),
    (f"{T}.rope_parameters.full_attention", 3, None, "a JSON object"),
    (f"{T}.partial_rotary_factor", 0.5, None, "1.0"),
    (f"{D}.rope_parameters.full_attention.partial_rotary_factor", 0.5, None, "1.0"),
    (f"{D}.rope_scaling", {"rope_type": "llama3", "factor": 8.0}, f"{D}.rope_scaling.rope_type", "'linear'"),
    (f"{T}.layer_types", ["full_attention"] * 3, None, "4 entries, found 3"),
    (f"{T}.layer_types", ["chunked_attention"] * 4, f"{T}.layer_types[0]", "'full_attention'"),
    (f"{T}.layer_types", "full_attention", None, "a list of strings"),
    (f"{T}.num_key_value_heads", 4, None, "a divisor of num_attention_heads (6)"),
    (f"{D}.head_dim", 9, None, "an even number"),
    (f"{T}.hidden_size", 50, None, "transformers refuses it as well"),
    (f"{D}.hidden_size", 54, None, "48, as encoder.text_config.hidden_size"),
    (f"{D}.vocab_size", 212, None, "211, as encoder.text_config.vocab_size"),
    (f"{D}.tie_word_embeddings", 0, None, "true or false"),
    (f"{V}.vision_use_head", True, None, "the pooling head is not implemented"),
    (f"{V}.vision_use_head", ..., None, "absent (which means true)"),
    (f"{V}.hidden_size", 21, None, "a multiple of num_attention_heads (5)"),
    (f"{V}.image_size", [32, 32], None, "an integer"),
    (f"{V}.patch_size", [8, 8], None, "an integer"),
    (f"{V}.image_size", 7, None, "at least patch_size (8)"),
    (f"{V}.model_type", "clip_vision_model", None, "SigLIP"),
    ("encoder.mm_tokens_per_image", 5, None, "the square of a divisor of the 4 patches"),
    ("encoder.mm_tokens_per_image", 9, None, "the square of a divisor of the 4 patches"),
    ("encoder.mm_tokens_per_image", 0, None, "the square"),
    *[(f"{T}.{name}", ..., None, "is missing") for name in TEXT if TEXT[name].__class__ is int and "token" not in name],
    *[(f"{D}.{name}", 0, None, "from 1 to") for name in ("vocab_size", "intermediate_size", "max_position_embeddings")],
    *[(f"{T}.{name}", -1, None, "from 1 to") for name in ("num_attention_heads", "num_key_value_heads", "head_dim")],
    *[(f"{V}.{name}", 0, None, "from 1 to") for name in VISION if name.startswith(("num", "patch", "hidden"))],
    (f"{T}.hidden_size", True, None, "an integer"),
    (f"{T}.hidden_size", "48", None, "an integer"),
    (f"{T}.hidden_size", 48.0, None, "an integer"),
    (f"{T}.hidden_size", 1 << 40, None, "below 2**31"),
    (f"{T}.rms_norm_eps", float("nan"), None, "finite"),
    (f"{T}.rms_norm_eps", 10**400, None, "finite"),
    (f"{T}.rms_norm_eps", 0, None, "above 0"),
    (f"{V}.layer_norm_eps", True, None, "finite number"),
    (f"{T}.query_pre_attn_scalar", 0, None, "above 0"),
    (f"{D}.query_pre_attn_scalar", -3.5, None, "above 0"),
    (f"{T}.attn_logit_softcapping", 0.0, None, "above 0"),
    (f"{D}.final_logit_softcapping", float("inf"), None, "finite"),
    (f"{T}.sliding_window", 0, None, "from 1 to"),
    (f"{T}.sliding_window", None, None, "an integer"),
    ("image_token_index", 211, None, "0 to vocab_size - 1 (210)"),
    ("image_token_index", ..., None, "256001"),
    ("encoder.boi_token_index", 211, None, "0 to vocab_size - 1 (210)"),
    ("encoder.eoi_token_index", -1, None, "0 to vocab_size - 1 (210)"),
    ("eoi_token_index", 150, None, "151, as encoder.eoi_token_index"),
    (f"{T}.pad_token_id", 999, None, "0 to vocab_size - 1"),
    (f"{D}.bos_token_id", 999, None, "0 to vocab_size - 1"),
    (f"{D}.eos_token_id", [1, 999], None, "999"),
    (f"{D}.eos_token_id", [], None, "an integer or a list"),
    ("pad_token_id", 3, None, "7, as decoder.pad_token_id"),
    ("is_encoder_decoder", False, None, "True"),
    ("model_type", "t5gemma", None, "'t5gemma2'"),
    ("model_type", ..., None, "'t5gemma2'"),
    (f"{T}.model_type", "gemma2_text", None, "a t5gemma2 part"),
    ("encoder.model_type", "gemma3_text", None, "a t5gemma2 part"),
    (f"{T}.use_bidirectional_attention", True, None, "not implemented"),
    (f"{D}.model_type", [], None, "a t5gemma2 part"),
    ("encoder", ..., None, "missing"),
    ("decoder", [], None, "a JSON object"),
    (T, None, None, "a JSON object"),
    ("dtype", "int8", None, "bfloat16"),
    (f"{D}.dtype", 16, None, "bfloat16"),
    ("num_labels", 0, None, "from 1 to"),
    ("problem_type", "ranking", None, "regression"),
    ("id2label", [], None, "a JSON object"),
]


@pytest.mark.parametrize(("path", "value", "named", "words"), REFUSED, ids=lambda item: str(item)[:40])
def test_refusals_name_field_value_and_remedy(path: str, value: object, named: str | None, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_dict(put(released(), path, value))
    message = str(error.value)
    assert message.startswith(f"{named or path} is ")
    assert words in message
    assert "; " in message  # what to do
    if isinstance(value, int | float | str) and "missing" not in message and value != 10**400:
        assert repr(value) in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{T}.num_hidden_layers", 2_000_000_000),
        (f"{T}._sliding_window_pattern", 0),
        (f"{D}.rope_theta", -1.0),
    ],
)
def test_refusals_of_the_old_spelling(path: str, value: float) -> None:
    with pytest.raises(ConfigError, match=repr(value)):
        Config.from_dict(put(old(), path, value))


def test_a_config_cannot_be_built_wrong_directly() -> None:
    config = Config.from_dict(released())
    with pytest.raises(ConfigError, match=r"decoder\.head_dim is 9"):
        dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, head_dim=9))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_labels = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.encoder.rope_parameters["full_attention"] = Rope(1.0)  # type: ignore[index]
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "a JSON list"),
        (b'{"model_type": "t5gemma2", "model_type": "t5"}', "appears twice"),
        (b" " * (1 << 20) + b"{}", "larger than"),
        (None, "no such file"),
    ],
    ids=["empty", "cut", "utf16", "deep", "list", "twice", "large", "missing"],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ConfigError, match=words) as error:
            Config.load(path)
        assert "config.json" in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = [
    *(f"{T}.{name}" for name in TEXT),
    *(f"{V}.{name}" for name in VISION),
    *(f"{D}.rope_parameters.{kind}" for kind in ("full_attention", "sliding_attention")),
    *("model_type", "encoder", "encoder.mm_tokens_per_image", "id2label", "num_labels", "dtype"),
    *(f"{D}.rope_scaling", f"{D}.rope_theta", f"{D}.sliding_window_pattern", "eos_token_id", "problem_type"),
]


@given(st.sampled_from(PATHS), JSON)
def test_any_value_anywhere_is_a_config_or_a_config_error(path: str, value: object) -> None:
    raw = put(released(), path, value)
    with contextlib.suppress(ConfigError):
        assert isinstance(Config.from_dict(raw), Config)


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


def test_image_ids_must_differ() -> None:
    """One id for the image's place and its end would be both a feature row and the EOI row."""
    config = preset("270m")
    with pytest.raises(ConfigError, match=r"image_token_index is .* expected image, boi and eoi ids that differ"):
        dataclasses.replace(config, image_token_index=config.eoi_token_index)
