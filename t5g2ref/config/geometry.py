"""The configuration of a T5Gemma 2 model: frozen, complete, and refusing what is not implemented.

Every field has the name it has in the checkpoint's `config.json`, and every `Config` that exists can be
computed: building one with a value that the reference does not implement raises `ConfigError` with the field,
the value and the remedy. `read` and `write` know the spellings of the file. Source: the
released `config.json`, then transformers 5.23 `models/t5gemma2/configuration_t5gemma2.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from t5g2ref.config.fields import MAX_LAYERS, MAX_SIZE, ConfigError, positive, read_file, refuse
from t5g2ref.config.read import ACTIVATION, ACTIVATIONS, read
from t5g2ref.config.read_ropes import LAYER_TYPES
from t5g2ref.config.remarks import remarks
from t5g2ref.config.ropes import Rope, Ropes, check_ropes
from t5g2ref.config.write import write
from t5g2ref.notes import note

__all__ = ["SIGLIP", "Config", "ConfigError", "TextConfig", "VisionConfig"]


@dataclass(frozen=True)
class TextConfig:
    """One text stack, the encoder's or the decoder's. Sizes count elements; the window counts keys."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    query_pre_attn_scalar: float
    sliding_window: int
    layer_types: tuple[str, ...]
    rope_parameters: Mapping[str, Rope]
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    pad_token_id: int = 0
    bos_token_id: int = 2
    eos_token_id: tuple[int, ...] = (1,)
    hidden_activation: str = ACTIVATION
    attention_bias: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rope_parameters, Ropes):  # a frozen copy: the caller's mapping may change
            object.__setattr__(self, "rope_parameters", Ropes(**self.rope_parameters))

    @property
    def groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def window(self, layer_type: str) -> int | None:
        """The number of keys a query of this layer type may see, None for all of them."""
        return self.sliding_window if layer_type == "sliding_attention" else None


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower. Image and patch are square; their sizes are sides in pixels."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    layer_norm_eps: float = 1e-6

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Config:
    """The whole model; `dtype` is the one its checkpoint declares, None where it declares none.

    Without a tower `vision` is the released one's, without a decoder `decoder` is the encoder's stack: both unused.
    """

    encoder: TextConfig
    decoder: TextConfig
    vision: VisionConfig
    mm_tokens_per_image: int = 256
    boi_token_index: int = 255_999
    eoi_token_index: int = 256_000
    image_token_index: int = 256_001
    num_labels: int = 2
    problem_type: str | None = None
    dtype: str | None = None
    has_vision: bool = True
    has_decoder: bool = True

    def __post_init__(self) -> None:
        _check_text(self.encoder, "encoder.text_config")
        _check_text(self.decoder, "decoder")
        if self.has_vision:
            _check_vision(self.vision, self.mm_tokens_per_image)
        _check_joint(self)

    @property
    def tokens_per_side(self) -> int:
        """The side of the pooled image grid, in tokens."""
        return math.isqrt(self.mm_tokens_per_image)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Config:
        """Return the Config of a parsed config.json in either spelling; ConfigError names what is refused."""
        parts = read(raw)
        for name in ("encoder", "decoder"):
            ropes = {kind: Rope.of(rope) for kind, rope in parts[name]["rope_parameters"].items()}
            parts[name] = TextConfig(**parts[name] | {"rope_parameters": ropes})
        return Config(**parts | {"vision": VisionConfig(**parts["vision"]) if parts["has_vision"] else SIGLIP})

    @staticmethod
    def load(path: str | Path) -> Config:
        """Return the Config of a checkpoint folder, or of a config.json given by its path; what is odd is noted."""
        config = Config.from_dict(raw := read_file(path))
        for text in remarks(raw):
            note(f"{path}: {text}")
        return config

    def to_dict(self, spelling: Literal["released", "old"] = "released") -> dict[str, Any]:
        """Return the config.json object that transformers accepts and `from_dict` reads back to equal values.

        "old" writes the pattern and the theta fields instead of `layer_types` and `rope_parameters`; it
        raises ConfigError where it cannot say what this Config holds.
        """
        return write(asdict(self), spelling)


def _check_sizes(part: object, where: str) -> None:
    """Every integer field that is not a token id is a size and every float a scale: all must be above 0."""
    for field in fields(part):  # type: ignore[arg-type]  # a dataclass, whichever it is
        value, path = getattr(part, field.name), f"{where}.{field.name}".removeprefix(".")
        if field.name.endswith(("token_id", "token_index")) or value is None:
            continue
        if field.type == "int" and not (type(value) is int and 1 <= value <= MAX_SIZE):
            raise refuse(path, value, "an integer from 1 to 2**31 - 1", "correct the field")
        if str(field.type).startswith("float") and not positive(value):
            raise refuse(path, value, "a finite number above 0", "correct the field, or null for no softcap")
        if field.name == "num_hidden_layers" and value > MAX_LAYERS:
            raise refuse(path, value, f"1 to {MAX_LAYERS}", "correct the number of layers")


def _check_text(text: TextConfig, where: str) -> None:
    _check_sizes(text, where)
    layers, types = text.num_hidden_layers, text.layer_types
    if len(types) != layers:
        raise refuse(f"{where}.layer_types", types, f"{layers} entries, found {len(types)}", "name every layer's type")
    for i, kind in enumerate(types):
        if kind not in LAYER_TYPES:
            expected = " or ".join(map(repr, LAYER_TYPES))
            raise refuse(f"{where}.layer_types[{i}]", kind, expected, "no other layer type is implemented")
    if text.hidden_activation not in ACTIVATIONS:
        expected = "one of " + ", ".join(ACTIVATIONS)
        raise refuse(f"{where}.hidden_activation", text.hidden_activation, expected, "no other is implemented")
    if type(text.attention_bias) is not bool:
        raise refuse(f"{where}.attention_bias", text.attention_bias, "true or false", "the releases have false")
    heads, kv = text.num_attention_heads, text.num_key_value_heads
    if heads % kv:
        expected = f"a divisor of num_attention_heads ({heads})"
        raise refuse(f"{where}.num_key_value_heads", kv, expected, "each kv head serves the same number of heads")
    if text.head_dim % 2:
        raise refuse(f"{where}.head_dim", text.head_dim, "an even number", "RoPE turns pairs of channels")
    check_ropes(text.rope_parameters, where, text.head_dim, text.max_position_embeddings)
    if text.hidden_size % heads:
        expected = f"a multiple of num_attention_heads ({heads})"
        raise refuse(f"{where}.hidden_size", text.hidden_size, expected, "transformers refuses it as well")
    _check_ids(text, where)


def _check_ids(text: TextConfig, where: str) -> None:
    _check_id(f"{where}.pad_token_id", text.pad_token_id, text.vocab_size)
    _check_id(f"{where}.bos_token_id", text.bos_token_id, text.vocab_size)
    for token in text.eos_token_id:
        _check_id(f"{where}.eos_token_id", token, text.vocab_size)


def _check_id(path: str, token: int, vocab: int) -> None:
    if type(token) is not int or not 0 <= token < vocab:
        raise refuse(path, token, f"an id from 0 to vocab_size - 1 ({vocab - 1})", "set the id in config.json")


def _check_vision(vision: VisionConfig, tokens: int) -> None:
    where = "encoder.vision_config"
    _check_sizes(vision, where)
    heads, side = vision.num_attention_heads, vision.patches_per_side
    if vision.hidden_size % heads:
        expected = f"a multiple of num_attention_heads ({heads})"
        raise refuse(f"{where}.hidden_size", vision.hidden_size, expected, "a head has hidden_size / heads channels")
    if side < 1:
        expected = f"at least patch_size ({vision.patch_size})"
        raise refuse(f"{where}.image_size", vision.image_size, expected, "an image holds at least one patch")
    if type(tokens) is not int or tokens < 1 or math.isqrt(tokens) ** 2 != tokens or side % math.isqrt(tokens):
        expected = f"the square of a divisor of the {side} patches per side"
        raise refuse("encoder.mm_tokens_per_image", tokens, expected, "pooling must give exactly that many tokens")


def _check_joint(config: Config) -> None:
    encoder, decoder = config.encoder, config.decoder
    _check_sizes(config, "")
    for name in ("hidden_size", "vocab_size"):
        expected = f"{getattr(encoder, name)}, as encoder.text_config.{name}"
        if getattr(encoder, name) != getattr(decoder, name):
            remedy = "both stacks share one embedding and one residual width"
            raise refuse(f"decoder.{name}", getattr(decoder, name), expected, remedy)
    if not config.has_vision:
        return
    _check_id("image_token_index", config.image_token_index, encoder.vocab_size)
    _check_id("encoder.boi_token_index", config.boi_token_index, encoder.vocab_size)
    _check_id("encoder.eoi_token_index", config.eoi_token_index, encoder.vocab_size)
    if len({config.image_token_index, config.boi_token_index, config.eoi_token_index}) < 3:
        found = (config.image_token_index, config.boi_token_index, config.eoi_token_index)
        remedy = "each marks something else in the prompt"
        raise refuse("image_token_index", found, "image, boi and eoi ids that differ", remedy)


SIGLIP = VisionConfig(1152, 4304, 27, 16, 896, 14)
