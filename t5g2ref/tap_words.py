"""What each kind of tap is, in words: a line for every row of the table of taps. Whoever writes a port reads them.

A kind is a tap's name without its layer's number and without its text stack, since both stacks have the same.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from t5g2ref.taps import Tap

_HEAD = {
    "pre_self_attn_layernorm": "RMSNorm of the layer's input, times (1 + weight)",
    "self_attn.q_proj": "queries; heads are merged, the first H numbers are head 0; bias: `attention_bias`",
    "self_attn.k_proj": "keys of the stack's own tokens, as q_proj",
    "self_attn.v_proj": "values of the stack's own tokens, as q_proj",
    "self_attn.q_norm": "RMSNorm over each head of q_proj, times (1 + weight); before RoPE",
    "self_attn.q_rope": "q_norm turned by RoPE; not yet multiplied by query_pre_attn_scalar^-0.5",
    "self_attn.k_norm": "RMSNorm over each head of k_proj, times (1 + weight); before RoPE",
    "self_attn.k_rope": "k_norm turned by RoPE: the new keys as RoPE returns them, before any cache",
}
_CROSS = {
    "self_attn.cross_k_proj": "k_proj of the encoder's output: the same matrix as k_proj's",
    "self_attn.cross_v_proj": "v_proj of the encoder's output: the same matrix as v_proj's",
    "self_attn.cross_k_norm": "k_norm of cross_k_proj; cross keys are not turned by RoPE",
    "self_attn.keys": "all own keys attended to, oldest first: the cache's, then k_rope; kv heads are not repeated",
    "self_attn.values": "the values that belong to keys",
    "self_attn.cross_keys": "all cross keys that are attended to: cross_k_norm of the source",
    "self_attn.cross_values": "all cross values that are attended to, by heads",
}
_TAIL = {
    "self_attn.mask": "True where the query may see the key; in the decoder own keys first, then all cross keys",
    "self_attn.attention": "softmax over all keys at once, times values; heads are merged; before o_proj",
    "self_attn.o_proj": "o_proj of attention; bias: `attention_bias`",
    "post_self_attn_layernorm": "RMSNorm of o_proj's result, times (1 + weight); before it is added",
    "attn_residual": "the layer's input + post_self_attn_layernorm",
    "pre_feedforward_layernorm": "RMSNorm of attn_residual, times (1 + weight)",
    "mlp.gate_proj": "gate_proj of pre_feedforward_layernorm; no bias",
    "mlp.up_proj": "up_proj of pre_feedforward_layernorm; no bias",
    "mlp.act_fn": "`hidden_activation` of gate_proj: GELU with tanh, in the releases",
    "mlp.product": "act_fn · up_proj",
    "mlp.down_proj": "down_proj of the product; no bias",
    "post_feedforward_layernorm": "RMSNorm of down_proj's result, times (1 + weight); before it is added",
}
_EYE = {
    "layer_norm1": "LayerNorm of the layer's input, with weight and bias",
    "self_attn.q_proj": "queries, with bias; heads are merged",
    "self_attn.k_proj": "keys, with bias",
    "self_attn.v_proj": "values, with bias",
    "self_attn.attention": "softmax over all patches, scaled by H^-0.5, times values; before out_proj",
    "self_attn.out_proj": "out_proj of attention, with bias",
    "attn_residual": "the layer's input + out_proj",
    "layer_norm2": "LayerNorm of attn_residual, with weight and bias",
    "mlp.fc1": "fc1 of layer_norm2, with bias",
    "mlp.activation_fn": "GELU of fc1, with tanh",
    "mlp.fc2": "fc2 of activation_fn, with bias; before it is added",
}
_TOWER, _PROJECTOR = "encoder.vision_tower", "encoder.multi_modal_projector"
_EYES = f"{_TOWER}.encoder.layers.*"

MEANINGS = {
    "embed_tokens": "rows of the table · √D, scaled in the table's type; the end-of-image id has its own row, unscaled",
    f"{_TOWER}.embeddings.patch_embedding": "the patches, row by row, through the convolution, with bias",
    f"{_TOWER}.embeddings": "patch_embedding + the learned positions",
    **{f"{_EYES}.{name}": words for name, words in _EYE.items()},
    _EYES: "the layer's output: attn_residual + fc2",
    f"{_TOWER}.post_layernorm": "LayerNorm of the last layer's output, with weight and bias",
    f"{_PROJECTOR}.avg_pool": "the mean of each square of patches, row by row",
    f"{_PROJECTOR}.mm_soft_emb_norm": "RMSNorm of avg_pool, times (1 + weight)",
    f"{_PROJECTOR}.projected": "mm_soft_emb_norm through the projection, which is stored as (vision, text)",
    "inputs_embeds": "the first layer's input: embed_tokens, with projected in place of image ids, unscaled",
    "rotary_emb.*.cos": "cosines of position · theta^(-2i/H) / factor; the second half of H repeats the first",
    "rotary_emb.*.sin": "sines of the same angles",
    **{f"layers.*.{name}": words for name, words in (_HEAD | _CROSS | _TAIL).items()},
    "layers.*": "the layer's output: attn_residual + post_feedforward_layernorm",
    "norm": "RMSNorm of the last layer's output, times (1 + weight): the stack's output",
    "lm_head": "the decoder's output times the embedding table, unscaled; before the final softcap",
    "logits": "lm_head after the final softcap, if there is one; a classifier's score, of a sequence at its last token",
    "score": "the classifier's linear layer on the decoder's output, with bias",
    "loss": "one number: the mean over the labels that count; a label of -100 does not",
}
"""Kind of tap → what it is, in the order of the computation. `*` stands for a layer's number, or a layer type."""


def kind(tap: Tap) -> str:
    """The kind of a tap, which is a key of MEANINGS."""
    name = re.sub(r"(?<=\.layers\.)\d+", "*", tap.name)
    name = re.sub(r"(?<=\.rotary_emb\.)\w+", "*", name)
    return re.sub(r"^(encoder\.text_model|decoder)\.", "", name)


def lines(width: int = 98, column: int = 36) -> Iterator[str]:
    """Every kind with its words, wrapped; a long name has a line of its own."""
    for name, words in MEANINGS.items():
        head = f"{name:{column}} "
        if len(name) > column:
            yield name
            head = " " * (column + 1)
        yield from textwrap.wrap(words, width, initial_indent=head, subsequent_indent=" " * (column + 1))
