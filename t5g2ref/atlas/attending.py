"""Attention weights, which are no tap: made again from the taps that they come from, by the model's own functions."""

from __future__ import annotations

from collections.abc import Mapping

from t5g2ref.attention import attention_weights
from t5g2ref.config import TextConfig
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array, Numerics

NEEDED = ("self_attn.q_rope", "self_attn.k_rope", "self_attn.keys", "self_attn.cross_keys", "self_attn.mask")
"""The taps of a layer that they are made of."""


def encoder_weights(model: T5Gemma2, taps: Mapping[str, Array], layer: int) -> Array:
    """(B, N, S, S): the weight of each key for each query, in a layer of the encoder."""
    at = f"encoder.text_model.layers.{layer}.self_attn"
    return weights(model.nx, model.config.encoder, taps[f"{at}.q_rope"], taps[f"{at}.k_rope"], taps[f"{at}.mask"])


def decoder_weights(model: T5Gemma2, taps: Mapping[str, Array], layer: int) -> Array:
    """(B, N, T, own + S_enc): one row is one softmax over the decoder's own past and the encoder's output."""
    at = f"decoder.layers.{layer}.self_attn"
    keys = model.nx.join([taps[f"{at}.keys"], taps[f"{at}.cross_keys"]], 2)
    return weights(model.nx, model.config.decoder, taps[f"{at}.q_rope"], keys, taps[f"{at}.mask"])


def weights(nx: Numerics, config: TextConfig, q: Array, k: Array, mask: Array) -> Array:
    """Queries (B, N, T, H), keys (B, K, S, H), mask bool (B, T, S) → softmax(q kᵀ · scale), (B, N, T, S)."""
    batch, heads, length, width = q.shape
    stacked = q.reshape(batch, k.shape[1], -1, width)  # the query heads of a kv head as rows of one product
    grouped = (batch, k.shape[1], -1, length, k.shape[2])
    scale, cap = config.query_pre_attn_scalar**-0.5, config.attn_logit_softcapping
    found = attention_weights(nx, stacked, k, scale, cap, mask[:, None, None], grouped)
    return found.reshape(batch, heads, length, -1)
