"""Reading `config.json`: from both spellings of the file to plain keyword arguments.

`geometry` owns what the fields mean and which values can be computed; this file owns what they are called and
what type they have. It knows two spellings. The released one has `layer_types` and `rope_parameters`; the old
one has `sliding_window_pattern` (or `_sliding_window_pattern`), `rope_theta`, `rope_local_base_freq` and
`rope_scaling`; `read_ropes` reads those of RoPE. A default is used only where transformers 5.23
(`configuration_t5gemma2.py`) has that same one for every release; a missing size is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from t5g2ref.config.fields import ABSENT, MAX_LAYERS, Section, refuse
from t5g2ref.config.read_ropes import LAYER_TYPES, read_ropes
from t5g2ref.dtypes import DTYPES

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
ACTIVATION = "gelu_pytorch_tanh"
ACTIVATIONS = (ACTIVATION, "gelu", "silu", "swish", "relu")  # of a text stack; gelu is the erf form, swish is silu
PATTERN = 6
ENCODER, GEMMA = "t5gemma2_encoder", "gemma3_text"
PAD, BOS = 0, 2  # the releases'; they stand in where a file has null
_TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_VISION_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested keyword arguments of `config.Config` from a parsed config.json in either spelling.

    An encoder that was saved by itself (`t5gemma2_encoder`) is its own top level and has no decoder.
    """
    if not isinstance(raw, Mapping):
        raise refuse("config", raw, "a JSON object", "pass the parsed config.json")
    top = Section(raw, "")
    alone = raw.get("model_type") == ENCODER
    if raw.get("model_type") != "t5gemma2" and not alone:
        raise refuse("model_type", raw.get("model_type"), f"'t5gemma2' or {ENCODER!r}", "give a T5Gemma 2 checkpoint")
    encoder = top if alone else top.section("encoder")
    text = encoder.section("text_config")
    decoder = text if alone else top.section("decoder")
    _check_kinds(top, encoder, text, decoder, alone)
    seeing = encoder.has("vision_config")
    vision = encoder.section("vision_config") if seeing else Section({}, encoder.path("vision_config"))
    return {
        "encoder": _text(text),
        "decoder": _text(decoder) | _decoder_ids(top, decoder),
        "vision": _vision(vision) if seeing else None,
        "has_vision": seeing,
        "has_decoder": not alone,
        "mm_tokens_per_image": encoder.integer("mm_tokens_per_image", 256),
        "boi_token_index": encoder.integer("boi_token_index", 255_999),
        "eoi_token_index": _eoi(top, encoder),
        # transformers overwrites the encoder's own value with the top level's, default included
        "image_token_index": top.integer("image_token_index", 256_001),
        "num_labels": _num_labels(top),
        "problem_type": top.choice("problem_type", PROBLEM_TYPES),
        "dtype": _dtype((top, text, encoder, vision, decoder)),
    }


def _check_kinds(top: Section, encoder: Section, text: Section, decoder: Section, alone: bool) -> None:
    """Each part is what its place says; the older Gemma 3 parts have the same fields and weights."""
    for part in (encoder, text, decoder):
        name = part.raw.get("model_type", "t5gemma2")
        known = isinstance(name, str) and (name.startswith("t5gemma2") or (name == GEMMA and part is not encoder))
        if not known:
            raise refuse(part.path("model_type"), name, "a t5gemma2 part", "give a T5Gemma 2 checkpoint")
        part.fixed("use_bidirectional_attention", False, "Gemma 3's own bidirectional window is not implemented")
    if not alone:
        top.fixed("is_encoder_decoder", True, "only the encoder-decoder model is implemented")
    for part in (top, encoder, text, decoder):
        if type(part.raw.get("tie_word_embeddings", True)) not in (bool, type(None)):
            found = part.raw["tie_word_embeddings"]
            raise refuse(part.path("tie_word_embeddings"), found, "true or false", "the releases have true")


def _text(part: Section) -> dict[str, Any]:
    activation = part.raw.get("hidden_activation", ACTIVATION)
    part.fixed("hidden_act", activation, "transformers reads hidden_activation: make the two agree")
    sizes = {name: part.integer(name) for name in _TEXT_SIZES}
    types = _layer_types(part, sizes["num_hidden_layers"])
    return sizes | {
        "layer_types": types,
        "sliding_window": _window(part, types, sizes["max_position_embeddings"]),
        "rms_norm_eps": part.number("rms_norm_eps", 1e-6),
        "query_pre_attn_scalar": part.number("query_pre_attn_scalar"),
        "rope_parameters": read_ropes(part, sizes["max_position_embeddings"]),
        "attn_logit_softcapping": _optional(part, "attn_logit_softcapping"),
        "final_logit_softcapping": _optional(part, "final_logit_softcapping"),
        "pad_token_id": _id(part, "pad_token_id", PAD),
        "bos_token_id": _id(part, "bos_token_id", BOS),
        "eos_token_id": _eos(part),
        "hidden_activation": activation,
        "attention_bias": part.raw.get("attention_bias", False),
    }


def _vision(part: Section) -> dict[str, Any]:
    part.fixed("model_type", "siglip_vision_model", "only the SigLIP tower is implemented")
    part.fixed("hidden_act", ACTIVATION, "only the released tanh GELU is implemented")
    if part.raw.get("vision_use_head", True) is not False:  # transformers' default is True
        found = part.raw.get("vision_use_head", "absent (which means true)")
        raise refuse(part.path("vision_use_head"), found, "false", "the pooling head is not implemented")
    return {name: part.integer(name) for name in _VISION_SIZES} | {
        "num_channels": part.integer("num_channels", 3),
        "layer_norm_eps": part.number("layer_norm_eps", 1e-6),
    }


def _optional(part: Section, name: str) -> float | None:
    return part.number(name) if part.has(name) else None


def _window(part: Section, types: tuple[str, ...], longest: int) -> int:
    """The window; null is allowed where nothing slides, and reads as the longest sequence (never used)."""
    if part.raw.get("sliding_window", ABSENT) is None and "sliding_attention" not in types:
        return longest
    return part.integer("sliding_window")


def _layer_types(part: Section, layers: int) -> tuple[str, ...]:
    """`layer_types` where given (transformers lets it win), else every pattern-th layer is full."""
    if part.has("layer_types"):
        given = part.raw["layer_types"]
        if not isinstance(given, list | tuple) or not all(isinstance(item, str) for item in given):
            raise refuse(part.path("layer_types"), given, "a list of strings", "name one type for each layer")
        return tuple(given)
    if not 1 <= layers <= MAX_LAYERS:  # the list is built from this number, which is not trusted
        raise refuse(part.path("num_hidden_layers"), layers, f"1 to {MAX_LAYERS}", "correct the number of layers")
    name = "sliding_window_pattern" if part.has("sliding_window_pattern") else "_sliding_window_pattern"
    pattern = part.integer(name, PATTERN)
    if pattern < 1:
        raise refuse(part.path(name), pattern, "at least 1", "6 means five sliding layers, then one full")
    return tuple(LAYER_TYPES[(i + 1) % pattern == 0] for i in range(layers))


def _id(part: Section, name: str, default: int) -> int:
    return part.integer(name) if part.has(name) else default


def _eos(part: Section) -> tuple[int, ...]:
    given = part.raw.get("eos_token_id", 1)
    if given is None:  # no id ends a row
        return ()
    ids = list(given) if isinstance(given, list | tuple) else [given]
    if not ids or any(type(item) is not int for item in ids):
        raise refuse(part.path("eos_token_id"), given, "an integer or a list of them", "the releases have 1")
    return tuple(ids)


def _decoder_ids(top: Section, decoder: Section) -> dict[str, Any]:
    """The decoder's ids, which the top level may repeat; generation reads the top level's list of ends."""
    found: dict[str, Any] = {}
    for name, default in (("pad_token_id", PAD), ("bos_token_id", BOS)):
        given = name in decoder.raw and not decoder.has(name)  # null: what the top level says, if anything
        found[name] = mine = _id(top if given and top.has(name) else decoder, name, default)
        if top.has(name) and top.integer(name) != mine:
            raise refuse(name, top.raw[name], f"{mine}, as decoder.{name}", "make the two agree")
    return found | {"eos_token_id": _eos(top if top.has("eos_token_id") else decoder)}


def _eoi(top: Section, encoder: Section) -> int:
    eoi = encoder.integer("eoi_token_index", 256_000)
    if top.has("eoi_token_index") and top.integer("eoi_token_index") != eoi:
        found = top.raw["eoi_token_index"]
        raise refuse("eoi_token_index", found, f"{eoi}, as encoder.eoi_token_index", "make the two agree")
    return eoi


def _num_labels(top: Section) -> int:
    if not top.has("id2label"):
        return top.integer("num_labels", 2)
    count = len(top.section("id2label").raw)
    if top.has("num_labels") and top.integer("num_labels") != count:
        raise refuse("num_labels", top.raw["num_labels"], f"{count}, as id2label", "make the two agree")
    return count


def _dtype(parts: Iterable[Section]) -> str | None:
    """The first dtype declared, top level first; a release declares it in the nested parts only."""
    for part in parts:
        for name in ("dtype", "torch_dtype"):
            if part.has(name) and part.raw[name] != "auto":  # as good as none: what the file has
                value = part.raw[name]
                short = value.removeprefix("torch.") if isinstance(value, str) else value
                if short not in DTYPES:
                    raise refuse(part.path(name), value, "one of " + ", ".join(DTYPES), "use one of these")
                return str(short)
    return None
