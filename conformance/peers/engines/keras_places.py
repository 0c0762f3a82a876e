"""Where KerasHub's T5Gemma 2 shows each tap, and which settings its built layers hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import wire

LAYOUTS = {
    "*.text_model.layers.*.self_attn.q_*": "B T N H",
    "*.text_model.layers.*.self_attn.k_*": "B T K H",
    "*.text_model.layers.*.self_attn.v_proj": "B T K H",
    "decoder.layers.*.self_attn.q_*": "B T N H",
    "decoder.layers.*.self_attn.k_*": "B T K H",
    "decoder.layers.*.self_attn.v_proj": "B T K H",
    "decoder.layers.*.self_attn.cross_*": "B S K H",
    "*.text_model.layers.*.self_attn.attention": "B T N H",
    "decoder.layers.*.self_attn.attention": "B T N H",
}
"""Tap → its axes here: heads come apart, behind the tokens. Those of the tower are like the table's."""

PLAIN = (
    "pre_self_attn_layernorm",
    "post_self_attn_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
Places = dict[int, tuple[str, tuple[str, ...]]]
"""id of a layer → how it is looked at, and its taps: "plain", of its result, then of its input; "in turn", of its
results one call after the other; "mask", of the mask that it is given."""


def places(backbone: Any) -> Places:
    """Where each tap is seen."""
    found: Places = {}
    for stack, layers, norm in (
        ("encoder.text_model", backbone.encoder_layers, backbone.encoder_norm),
        ("decoder", backbone.decoder_layers, backbone.decoder_norm),
    ):
        for number, layer in enumerate(layers):
            found |= _layer(f"{stack}.layers.{number}", layer, number == 0)
        found[id(norm)] = "plain", (f"{stack}.norm",)
    return found | _vision(backbone.vision_encoder)


def _layer(at: str, layer: Any, first: bool) -> Places:
    """The taps of one text layer."""
    stack = at.partition(".layers.")[0]
    entry = (f"{stack}.inputs_embeds", *["decoder.embed_tokens"] * (stack == "decoder")) if first else ()
    found: Places = {id(layer): ("plain", (at, *entry))}
    for name in PLAIN:
        residual = (f"{at}.attn_residual",) if name == "pre_feedforward_layernorm" else ()
        found[id(getattr(layer, name))] = "plain", (f"{at}.{name}", *residual)
    attention = layer.merged_attn if hasattr(layer, "merged_attn") else layer.self_attn
    own = f"{at}.self_attn"
    found[id(attention)] = "mask", (f"{own}.mask",)
    cross = at.startswith("decoder")
    found[id(attention.query_dense)] = "in turn", (f"{own}.q_proj",)
    found[id(attention.key_dense)] = "in turn", (f"{own}.k_proj", *[f"{own}.cross_k_proj"] * cross)
    found[id(attention.value_dense)] = "in turn", (f"{own}.v_proj", *[f"{own}.cross_v_proj"] * cross)
    found[id(attention.query_norm)] = "in turn", (f"{own}.q_norm",)
    found[id(attention.key_norm)] = "in turn", (f"{own}.k_norm", *[f"{own}.cross_k_norm"] * cross)
    found[id(attention.rotary_embedding)] = "in turn", (f"{own}.q_rope", f"{own}.k_rope")
    found[id(attention.output_dense)] = "plain", (f"{own}.o_proj", f"{own}.attention")
    found[id(layer.mlp.gate_proj)] = "plain", (f"{at}.mlp.gate_proj",)
    found[id(layer.mlp.up_proj)] = "plain", (f"{at}.mlp.up_proj",)
    found[id(layer.mlp.down_proj)] = "plain", (f"{at}.mlp.down_proj", f"{at}.mlp.product")
    return found


def _vision(encoder: Any) -> Places:
    """The taps of the tower and the projector."""
    tower, projector = "encoder.vision_tower", "encoder.multi_modal_projector"
    block = encoder.get_layer("image_encoder")
    found: Places = {
        id(block.vision_embeddings.patch_embedding): ("plain", (f"{tower}.embeddings.patch_embedding",)),
        id(block.vision_embeddings): ("plain", (f"{tower}.embeddings",)),
        id(block.encoder_layer_norm): ("plain", (f"{tower}.post_layernorm",)),
        id(encoder.get_layer("pooling")): ("plain", (f"{projector}.avg_pool",)),
    }
    out = encoder.get_layer("vision_output_encoder")
    found[id(out.vision_soft_embedding_norm)] = "plain", (f"{projector}.mm_soft_emb_norm",)
    found[id(out)] = "plain", (f"{projector}.projected",)
    for number, layer in enumerate(block.resblocks):
        at = f"{tower}.encoder.layers.{number}"
        found |= {
            id(layer): ("plain", (at,)),
            id(layer.layer_norm_1): ("plain", (f"{at}.layer_norm1",)),
            id(layer.attn.query_proj): ("plain", (f"{at}.self_attn.q_proj",)),
            id(layer.attn.key_proj): ("plain", (f"{at}.self_attn.k_proj",)),
            id(layer.attn.value_proj): ("plain", (f"{at}.self_attn.v_proj",)),
            id(layer.attn.out_proj): ("plain", (f"{at}.self_attn.out_proj", f"{at}.self_attn.attention")),
            id(layer.layer_norm_2): ("plain", (f"{at}.layer_norm2", f"{at}.attn_residual")),
            id(layer.mlp_dense_1): ("plain", (f"{at}.mlp.fc1",)),
            id(layer.mlp_dense_2): ("plain", (f"{at}.mlp.fc2", f"{at}.mlp.activation_fn")),
        }
    return found


def settings(config: dict[str, Any], backbone: Any) -> Iterator[tuple[str, Any, Any]]:
    """(setting, asked for, what the built layers hold) of every setting that an engine may ignore."""
    for stack, asked, layers in (
        ("encoder", config["encoder"]["text_config"], backbone.encoder_layers),
        ("decoder", config["decoder"], backbone.decoder_layers),
    ):
        for name in ("rms_norm_eps", "query_pre_attn_scalar", "attn_logit_softcapping"):
            yield f"{stack}.{name}", asked[name], getattr(layers[0], name)
        for kind, layer in dict(zip(asked["layer_types"], layers, strict=True)).items():
            rope = asked["rope_parameters"][kind]
            yield f"{stack} rope theta of {kind}", rope["rope_theta"], layer.rope_max_wavelength
            yield f"{stack} rope type of {kind}", wire.rope_type(rope), "linear"
            yield f"{stack} rope factor of {kind}", rope.get("factor", 1.0), layer.rope_scaling_factor
            if kind == "sliding_attention":
                yield f"{stack} window of {kind}", asked["sliding_window"], layer.sliding_window
    vision = config["encoder"]["vision_config"]
    block = backbone.vision_encoder.get_layer("image_encoder")
    norms = block.resblocks[0].layer_norm_epsilon
    yield "encoder.vision_config.layer_norm_eps", vision["layer_norm_eps"], norms
    yield (
        "decoder.final_logit_softcapping",
        config["decoder"]["final_logit_softcapping"],
        backbone.final_logit_softcapping,
    )
    yield "eoi_token_index", config["eoi_token_index"], backbone.eoi_token_index
