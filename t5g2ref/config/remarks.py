"""What should be said of a config.json that is read all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from t5g2ref.config.fields import short
from t5g2ref.config.read import BOS, ENCODER, PAD


def remarks(raw: Mapping[str, Any]) -> Iterator[str]:
    """A line for each thing that its owner should know; `raw` has been read without a refusal."""
    alone = raw["model_type"] == ENCODER
    encoder = raw if alone else raw["encoder"]
    text = encoder["text_config"]
    decoder = text if alone else raw["decoder"]
    if (how := raw.get("quantization_config")) is not None:
        method = how.get("quant_method", "no quant_method") if isinstance(how, Mapping) else how
        yield f"quantization_config ({short(method)[1:-1]}) is not applied: the weights are read as they are stored"
    if any(part.get("tie_word_embeddings") is False for part in (raw, encoder, text, decoder)):
        yield "tie_word_embeddings is false, but all tables here are one: files where they differ are refused"
    for where, part in {"encoder.text_config": text, "decoder": decoder}.items():
        yield from (f"{where}.{line}" for line in _of_ropes(part))
    if alone:
        yield f"{ENCODER}: an encoder alone, which can encode and not generate"
    if encoder.get("vision_config") is None:
        yield "there is no vision_config: a model of text alone, which takes no pictures"
    if alone:
        return
    for name, default in (("pad_token_id", PAD), ("bos_token_id", BOS)):
        if decoder.get(name, default) is None and raw.get(name) is None:
            yield f"decoder.{name} is null: {default}, the releases', stands in for it"
    if decoder.get("eos_token_id", 1) is None and raw.get("eos_token_id") is None:
        yield "decoder.eos_token_id is null: no id ends an answer, only its greatest length"


def _of_ropes(part: Mapping[str, Any]) -> Iterator[str]:
    """Of a text stack: factors beside a rope_type that has none, which transformers warns of and ignores; and what
    dynamic RoPE remembers there."""
    ropes = {kind: rope or {} for kind, rope in (part.get("rope_parameters") or {}).items()}
    ropes["full_attention"] = {**ropes.get("full_attention", {}), **(part.get("rope_scaling") or {})}
    for kind, rope in ropes.items():
        name = rope.get("rope_type", rope.get("type", "default"))
        if name == "default" and rope.get("factor", 1.0) != 1.0:
            factor = short(rope["factor"])
            yield f"rope_parameters.{kind}: rope_type is 'default', so its factor ({factor}) is not applied"
        if name == "dynamic":
            yield f"rope_parameters.{kind}: dynamic RoPE goes by each call's length; transformers' by earlier ones' too"
