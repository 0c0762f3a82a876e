"""Writing `config.json` in both spellings, so that transformers' `T5Gemma2Config` loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t5g2ref.config.fields import refuse
from t5g2ref.config.read import ACTIVATION, ENCODER
from t5g2ref.config.read_ropes import LAYER_TYPES

INITIALIZER = 0.02
TRAINING = {"dropout_rate": 0.0, "attention_dropout": 0.0, "initializer_range": INITIALIZER}  # as the releases have it
REPEATED = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")  # of the decoder, at the top level


def write(fields: Mapping[str, Any], spelling: str = "released") -> dict[str, Any]:
    """Return config.json's object from `dataclasses.asdict(config)`; spelling "released" or "old".

    The result loads in transformers' `T5Gemma2Config`, and has what that saves: a port may read any of it. dtype
    stands at the top level only: in the nested parts it would override `from_pretrained(dtype=...)` there.
    """
    if spelling not in ("released", "old"):
        raise ValueError(f"spelling is {spelling!r}, expected 'released' or 'old'")
    ids = {name: fields[name] for name in ("boi_token_index", "eoi_token_index", "image_token_index")}
    vision = fields["vision"] | {"hidden_act": ACTIVATION, "vision_use_head": False, "attention_dropout": 0.0}
    encoder = {
        "model_type": ENCODER,
        "text_config": _write_text(fields["encoder"], "t5gemma2_text", "encoder.text_config", spelling),
        "vision_config": {"model_type": "siglip_vision_model"} | vision if fields["has_vision"] else None,
        "mm_tokens_per_image": fields["mm_tokens_per_image"],
        "tie_word_embeddings": True,
        "initializer_range": INITIALIZER,
    }
    if not fields["has_decoder"]:
        return encoder | ids | ({"dtype": fields["dtype"]} if fields["dtype"] else {})
    out = {
        "architectures": ["T5Gemma2ForConditionalGeneration"],
        "model_type": "t5gemma2",
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "image_token_index": ids["image_token_index"],
        "eoi_token_index": ids["eoi_token_index"],
        "encoder": encoder | ids,
        "decoder": (decoder := _write_text(fields["decoder"], "t5gemma2_decoder", "decoder", spelling)),
        **{name: decoder[name] for name in REPEATED},
        **TRAINING,
        "classifier_dropout_rate": 0.0,
    }
    return out | _write_labels(fields) | ({"dtype": fields["dtype"]} if fields["dtype"] else {})


def _write_labels(fields: Mapping[str, Any]) -> dict[str, Any]:
    out = {"problem_type": fields["problem_type"]} if fields["problem_type"] else {}
    if fields["num_labels"] == 2:
        return out
    names = [f"LABEL_{i}" for i in range(fields["num_labels"])]
    by_name = {name: i for i, name in enumerate(names)}
    return out | {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": by_name}


def _write_text(part: Mapping[str, Any], model_type: str, where: str, spelling: str) -> dict[str, Any]:
    scalar, eos = part["query_pre_attn_scalar"], part["eos_token_id"]
    out = {"model_type": model_type, **part} | {
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,  # transformers wants an int
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos) or None,
        "use_cache": True,
        **TRAINING,
    }
    types, ropes = list(out.pop("layer_types")), out.pop("rope_parameters")
    if spelling == "old":
        return out | _write_old(types, ropes, where)
    return out | {"layer_types": types, "rope_parameters": {name: _write_rope(ropes[name]) for name in ropes}}


def _write_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_theta": rope["theta"], **_write_scaling(rope)}


def _write_scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    """All but theta. What is None is absent; a length that is the stack's own has no place here."""
    if rope["scaling"] is None:
        return {"rope_type": "default"} if rope["factor"] == 1.0 else {"rope_type": "linear", "factor": rope["factor"]}
    own = {name: list(value) if isinstance(value, tuple) else value for name, value in rope["scaling"].items()}
    kept = {
        name: v for name, v in own.items() if v is not None and name not in ("rope_type", "max_position_embeddings")
    }
    return {"rope_type": own["rope_type"], "factor": rope["factor"], **kept}


def _write_old(types: list[str], ropes: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    first = types.index("full_attention") + 1 if "full_attention" in types else len(types) + 1
    if types != [LAYER_TYPES[(i + 1) % first == 0] for i in range(len(types))]:
        raise refuse(f"{where}.layer_types", types, "one full layer at every n-th place", "write it as 'released'")
    sliding, full = ropes["sliding_attention"], ropes["full_attention"]
    at, remedy = f"{where}.rope_parameters.sliding_attention", "the old spelling cannot say it: write it as 'released'"
    if sliding["scaling"] is not None:
        raise refuse(f"{at}.rope_type", sliding["scaling"]["rope_type"], "'default'", remedy)
    if sliding["factor"] != 1.0:
        raise refuse(f"{at}.factor", sliding["factor"], "1.0", remedy)
    return {
        "sliding_window_pattern": first,
        "rope_theta": full["theta"],
        "rope_local_base_freq": sliding["theta"],
        "rope_scaling": None if full["factor"] == 1.0 and full["scaling"] is None else _write_scaling(full),
    }
