"""What each tap is computed from: the taps that one operation reads. The tests hold it against the model itself.

Names are relative to the layer, as in `tap_words`. `input` is what the layer is given, `tables` are cos and sin of its
type, `past` is the tap itself in the call before, out of the cache. A mask follows from rules and is no input.
"""

from __future__ import annotations

from t5g2ref.config import Config, TextConfig

_ENCODED = "encoder.text_model.norm"
_LAYER = {
    "pre_self_attn_layernorm": "input",
    "self_attn.q_proj": "pre_self_attn_layernorm",
    "self_attn.k_proj": "pre_self_attn_layernorm",
    "self_attn.v_proj": "pre_self_attn_layernorm",
    "self_attn.q_norm": "self_attn.q_proj",
    "self_attn.q_rope": "self_attn.q_norm tables",
    "self_attn.k_norm": "self_attn.k_proj",
    "self_attn.k_rope": "self_attn.k_norm tables",
    "self_attn.mask": "",
    "self_attn.o_proj": "self_attn.attention",
    "post_self_attn_layernorm": "self_attn.o_proj",
    "attn_residual": "input post_self_attn_layernorm",
    "pre_feedforward_layernorm": "attn_residual",
    "mlp.gate_proj": "pre_feedforward_layernorm",
    "mlp.up_proj": "pre_feedforward_layernorm",
    "mlp.act_fn": "mlp.gate_proj",
    "mlp.product": "mlp.act_fn mlp.up_proj",
    "mlp.down_proj": "mlp.product",
    "post_feedforward_layernorm": "mlp.down_proj",
    "": "attn_residual post_feedforward_layernorm",
}
_ENCODER = {"self_attn.attention": "self_attn.q_rope self_attn.k_rope self_attn.v_proj"}
_DECODER = {
    "self_attn.cross_k_proj": _ENCODED,
    "self_attn.cross_v_proj": _ENCODED,
    "self_attn.cross_k_norm": "self_attn.cross_k_proj",
    "self_attn.keys": "self_attn.k_rope past",
    "self_attn.values": "self_attn.v_proj past",
    "self_attn.cross_keys": "self_attn.cross_k_norm",
    "self_attn.cross_values": "self_attn.cross_v_proj",
    "self_attn.attention": "self_attn.q_rope self_attn.keys self_attn.values "
    "self_attn.cross_keys self_attn.cross_values",
}
_TOWER = {
    "layer_norm1": "input",
    "self_attn.q_proj": "layer_norm1",
    "self_attn.k_proj": "layer_norm1",
    "self_attn.v_proj": "layer_norm1",
    "self_attn.attention": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "self_attn.out_proj": "self_attn.attention",
    "attn_residual": "input self_attn.out_proj",
    "layer_norm2": "attn_residual",
    "mlp.fc1": "layer_norm2",
    "mlp.activation_fn": "mlp.fc1",
    "mlp.fc2": "mlp.activation_fn",
    "": "attn_residual mlp.fc2",
}
_EYES, _PROJECTOR = "encoder.vision_tower", "encoder.multi_modal_projector"
_OUTSIDE = {
    f"{_EYES}.embeddings.patch_embedding": "",
    f"{_EYES}.embeddings": f"{_EYES}.embeddings.patch_embedding",
    f"{_PROJECTOR}.avg_pool": f"{_EYES}.post_layernorm",
    f"{_PROJECTOR}.mm_soft_emb_norm": f"{_PROJECTOR}.avg_pool",
    f"{_PROJECTOR}.projected": f"{_PROJECTOR}.mm_soft_emb_norm",
    "encoder.text_model.embed_tokens": "",
    "encoder.text_model.inputs_embeds": f"encoder.text_model.embed_tokens {_PROJECTOR}.projected",
    "decoder.embed_tokens": "",
    "decoder.inputs_embeds": "decoder.embed_tokens",
    "lm_head": "decoder.norm",
    "score": "decoder.norm",
    "logits": "lm_head score",
    "loss": "logits",
}


def inputs_of(name: str, config: Config) -> list[str]:
    """The taps that a tap is computed from; some of them are not in every call. KeyError for no tap.

    Its own name stands for itself in the call before.
    """
    stack, inside, rest = name.partition(".layers.")
    if inside:
        number, _, part = rest.partition(".")
        return _of_layer(name, stack, int(number), part, config)
    if name == f"{_EYES}.post_layernorm":
        return [f"{_EYES}.encoder.layers.{config.vision.num_hidden_layers - 1}"]
    if name.endswith(("text_model.norm", "decoder.norm")):
        text = config.decoder if name.startswith("decoder") else config.encoder
        return [f"{name.removesuffix('.norm')}.layers.{text.num_hidden_layers - 1}"]
    return [] if ".rotary_emb." in name else _OUTSIDE[name].split()


def _of_layer(name: str, stack: str, number: int, part: str, config: Config) -> list[str]:
    tower, decoder = stack.startswith(_EYES), stack == "decoder"
    text: TextConfig = config.decoder if decoder else config.encoder
    parts = _TOWER if tower else _LAYER | (_DECODER if decoder else _ENCODER)
    first = f"{_EYES}.embeddings" if tower else f"{stack}.inputs_embeds"
    found: list[str] = []
    for word in parts[part].split():
        if word == "input":
            found.append(f"{stack}.layers.{number - 1}" if number else first)
        elif word == "tables":
            found += [f"{stack}.rotary_emb.{text.layer_types[number]}.{table}" for table in ("cos", "sin")]
        else:
            found.append(name if word == "past" else word if word == _ENCODED else f"{stack}.layers.{number}.{word}")
    return found
