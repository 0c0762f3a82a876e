"""The catalogue: every defect that ports of this model are known for, and the taps where each can show first."""

from __future__ import annotations

from collections.abc import Iterable

DEFECTS: dict[str, str] = {
    "D01": "embedding scale omitted",
    "D02": "embedding scale not rounded to the weights' dtype",
    "D03": "embedding scale applied twice",
    "D04": "image features scaled too",
    "D05": "EOI row missing, scaled, or replaced on one side only",
    "D06": "image or EOI id hard-coded",
    "D07": "tied table not tied, or a stale copy",
    "D08": "decoder starts from pad instead of bos",
    "D09": "RMSNorm without + 1",
    "D10": "+ 1 twice",
    "D11": "(1 + w) formed in bf16",
    "D12": "cast, then times (1 + w)",
    "D13": "variance in bf16",
    "D14": "post norms missing, or pre and post exchanged",
    "D15": "q_norm or k_norm missing",
    "D16": "k_norm missing on cross keys",
    "D17": "q/k norm after RoPE, or over all heads at once",
    "D18": "encoder's final norm skipped before the cross projection",
    "D19": "local and global theta exchanged, or one for all",
    "D20": "linear factor ignored on full layers",
    "D21": "linear factor on sliding layers too",
    "D22": "linear factor applied twice",
    "D23": "theta hard-coded",
    "D24": "RoPE on cross keys",
    "D25": "query not rotated for the cross half",
    "D26": "interleaved pairs instead of half-split",
    "D27": "RoPE angles in bf16",
    "D28": "position restarts or slips after the cache",
    "D29": "left padding shifts the positions",
    "D30": "encoder window read as W - 1 on each side",
    "D31": "encoder window off by one on one side",
    "D32": "encoder window dropped",
    "D33": "layer pattern shifted or inverted",
    "D34": "decoder window <= instead of <",
    "D35": "encoder causal",
    "D36": "cross keys truncated by the window",
    "D37": "window laid over the cross half",
    "D38": "padding mask dropped in the encoder",
    "D39": "padding mask dropped in the cross half",
    "D40": "keep-mask added as if additive",
    "D41": "NaN from a fully masked row",
    "D42": "decoder padding mask missing",
    "D43": "mask halves or attention halves exchanged",
    "D44": "two softmaxes instead of one",
    "D45": "T5 relative position bias added",
    "D46": "scale from head_dim, not query_pre_attn_scalar",
    "D47": "GQA heads tiled instead of repeated",
    "D48": "head_dim taken as hidden / heads",
    "D49": "attention softcap added, or ignored where set",
    "D50": "final logit softcap added or missing",
    "D51": "softmax or scores in bf16",
    "D52": "erf GELU instead of tanh",
    "D53": "gate and up exchanged",
    "D54": "sliding cache keeps one token too few or too many",
    "D55": "cross keys kept from an earlier source, or not reordered with the beams",
    "D56": "prefill n + m differs from prefill n then m",
    "D57": "unfilled cache slots attended",
    "D58": "image mean, std or rescale twice, wrong resize",
    "D59": "patch grid or projection transposed",
    "D60": "projector norm without + 1, or before pooling",
    "D61": "image features in the wrong order",
    "D62": "SigLIP post-norm, position embedding or bias missing",
    "D63": "fp16 overflow",
    "D64": "classification pools the last position, pad or not",
    "D65": "LM loss shifted once more, or pads counted",
    "D66": "NaN in a tensor passes a comparison",
    "D67": "layer pattern inverted and thetas exchanged as well",
    "D68": "position + 1 in windowed layers only",
    "D69": "window ignored where nothing is padded, or where one query is decoded",
    "D70": "token id 0 taken for padding whatever the mask says",
    "D71": "one stack's eps, scale, thetas or window used for both",
    "D72": "left pads attended in windowed layers",
    "D73": "rows whose first tile or window is all padding",
    "D74": "several tokens scored behind a cache with a mask of lengths",
    "D75": "preallocated cache with a padded encoder: cross mask from lengths, or empty slots",
    "D76": "a step of one token, fed as an embedding, loses the scale or the EOI row",
    "D77": "pictures resampled without antialias",
    "D78": "beams repeat text rows but not pictures, or in another order",
    "D79": "a tile, sum or counter that ends, wraps or changes its type at a length",
    "D80": "state of an earlier call is used",
    "D81": "logits kept from the wrong end, or too few or too many",
    "D83": "the GELU's 0.044715 has fewer digits",
    "D84": "inverse root by one Newton step",
    "D85": "masked scores are a number that still counts",
}

SEEN: dict[str, str] = {
    "D67": "Comfy-Org/ComfyUI#11409",
    "D68": "quic/efficient-transformers#1250",
    "D69": "unslothai/unsloth-zoo#635",
    "D72": "torch-spyre/torch-spyre#3405",
    "D73": "huggingface/transformers#45491",
    "D75": "huggingface/transformers#38244",
    "D76": "huggingface/transformers#41863",
    "D77": "ggml-org/llama.cpp#27594",
    "D78": "QwenLM/Qwen3-VL#560",
}
"""Public threads in which a defect of this family was met; the other ids are plausible, or not yet entered here."""


_FIRST_AT = """\
embed_tokens: D01 D02 D03 D05 D06 D07 D08 D76
inputs_embeds: D04 D06 D61 D78
pre_self_attn_layernorm post_self_attn_layernorm pre_feedforward_layernorm: D09 D10 D11 D12 D13 D14 D71 D84
post_feedforward_layernorm norm: D09 D10 D11 D12 D13 D14 D71 D84
q_norm k_norm: D09 D10 D11 D12 D13 D15 D17 D71 D84
attn_residual: D14
q_proj k_proj v_proj: D48
cos sin: D19 D20 D21 D22 D23 D27 D28 D29 D67 D68 D71 D79 D80
q_rope k_rope: D17 D24 D25 D26 D28 D67 D68
cross_k_proj cross_v_proj: D18
cross_k_norm: D16 D24 D71
cross_keys cross_values: D24 D36 D55 D75
keys values: D36 D54 D56 D57 D69
mask: D30 D31 D32 D33 D34 D35 D36 D37 D38 D39 D40 D42 D43 D54 D57 D67 D69 D70 D71 D72 D74 D75
attention: D25 D37 D40 D41 D43 D44 D45 D46 D47 D49 D51 D71 D73 D79 D85
act_fn activation_fn: D52 D83
gate_proj up_proj: D53
patch_embedding embeddings post_layernorm: D62 D77
avg_pool projected: D04 D59 D60
mm_soft_emb_norm: D60
lm_head: D07 D81
logits: D50 D64 D78
loss: D65
"""
"""Last part of a tap's name: the catalogued defects that can show there first."""


def first_seen_at(tap: str, exposed: Iterable[str]) -> list[str]:
    """Of the `exposed` defect ids, those that the catalogue expects to show first at this tap."""
    last = tap.rsplit(".", 1)[-1]
    for line in _FIRST_AT.splitlines():
        names, ids = line.split(":")
        if last in names.split():
            return [defect for defect in ids.split() if defect in set(exposed)]
    return []
