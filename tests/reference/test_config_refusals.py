"""config: every refusal with its field, value and remedy."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
from pathlib import Path

import pytest
from config_files import TEXT, VISION, D, T, V, old, put, released
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref.config import Config, ConfigError, Rope, preset

REFUSED = [
    # field to set, value, field named in the message (None: the same), words of the message
    (f"{T}.attention_bias", None, None, "true or false"),
    (f"{D}.attention_bias", 1, None, "true or false"),
    (f"{D}.hidden_activation", "gelu_new", None, "one of gelu_pytorch_tanh, gelu, silu, swish, relu"),
    (f"{D}.hidden_activation", ["gelu"], None, "one of gelu_pytorch_tanh"),
    (f"{T}.hidden_act", "silu", None, "'gelu_pytorch_tanh'"),
    (f"{V}.hidden_act", "gelu", None, "tanh GELU"),
    (f"{T}.rope_parameters.full_attention.rope_type", "axial", None, "'default' or 'linear'"),
    (f"{T}.rope_parameters.full_attention.factor", 0, None, "above 0"),
    (f"{T}.rope_parameters.full_attention.factor", -1.0, None, "above 0"),
    (f"{T}.rope_parameters.full_attention.factor", ..., None, "missing"),
    (f"{T}.rope_parameters.sliding_attention.rope_theta", 0.0, None, "above 0"),
    (f"{D}.rope_parameters.sliding_attention.rope_theta", float("nan"), None, "finite"),
    (f"{T}.rope_parameters.sliding_attention.rope_theta", "1e4", None, "finite number"),
    (f"{T}.rope_parameters.full_attention.attention_factor", 2.0, None, "no such field"),
    (f"{T}.rope_parameters.rope_theta", 1e4, None, "key it by"),
    (f"{T}.rope_parameters.full_attention", 3, None, "a JSON object"),
    (f"{T}.partial_rotary_factor", 0.5, None, "1.0"),
    (f"{D}.rope_parameters.full_attention.partial_rotary_factor", 0.5, None, "1.0"),
    (f"{D}.rope_scaling", {"rope_type": "llama3", "factor": 8.0}, f"{D}.rope_scaling.low_freq_factor", "missing"),
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
    (f"{T}.rope_parameters.full_attention.rope_type", float("nan"), None, "'default' or 'linear'"),  # equals not itself
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


def test_image_ids_must_differ() -> None:
    """One id for the image's place and its end would be both a feature row and the EOI row."""
    config = preset("270m")
    with pytest.raises(ConfigError, match=r"image_token_index is .* expected image, boi and eoi ids that differ"):
        dataclasses.replace(config, image_token_index=config.eoi_token_index)
