"""The whole model again, from its description alone: flat weights by name, dense masks, no cache, blocks or classes.

For tests only, and in float64 only. It shares no line, layout or order of operations with t5g2ref on purpose: heads lie
behind positions, kv heads are repeated, rotations are complex numbers, patches are cut out by loops.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from helpers import Array

from t5g2ref.config import Config, TextConfig


def rms(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * (1 + weight)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def gelu(x: Array) -> Array:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "gelu_pytorch_tanh": gelu,
    "gelu": np.vectorize(lambda v: v * math.erfc(-v / math.sqrt(2)) / 2),
    "silu": lambda x: x * (1 + np.tanh(x / 2)) / 2,
    "relu": lambda x: np.where(x > 0, x, 0.0),
}


def turn(x: Array, positions: Array, theta: float, factor: float) -> Array:
    """x (B, T, N, H): plane i is x[i] + 1j x[i + H/2], turned by position · theta^(−2i/H) / factor."""
    half = x.shape[-1] // 2
    angle = positions[:, :, None, None] * theta ** (-np.arange(half) / half) / factor
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


def attention(q: Array, k: Array, v: Array, allowed: Array, scale: float, cap: float | None = None) -> Array:
    """q (B, T, N, H), k and v (B, S, K, H), allowed (B, T, S) → (B, T, N·H); rows with nothing allowed give 0."""
    repeat = q.shape[2] // k.shape[2]
    scores = np.einsum("btnh,bsnh->bnts", q, np.repeat(k, repeat, axis=2)) * scale
    if cap is not None:
        scores = cap * np.tanh(scores / cap)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * allowed[:, None]
    total = weights.sum(-1, keepdims=True)
    out = np.einsum("bnts,bsnh->btnh", weights / np.where(total == 0, 1, total), np.repeat(v, repeat, axis=2))
    return out.reshape(*out.shape[:2], -1)


class Naive:
    """`logits(...)` of a configuration and {canonical name: array}."""

    def __init__(self, config: Config, weights: dict[str, Array]) -> None:
        self.config = config
        self.w = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def linear(self, name: str, x: Array) -> Array:
        y = np.einsum("...i,oi->...o", x, self.w[f"{name}.weight"])
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def embed(self, ids: Array) -> Array:
        name = "encoder.text_model.embed_tokens"
        x = self.w[f"{name}.weight"][ids] * np.sqrt(self.config.encoder.hidden_size)
        x[ids == self.config.eoi_token_index] = self.w[f"{name}.eoi_embedding"]
        return x

    def heads(self, name: str, x: Array, width: int) -> Array:
        return self.linear(name, x).reshape(*x.shape[:2], -1, width)

    def layer(
        self, at: str, text: TextConfig, kind: str, x: Array, positions: Array, allowed: Array, seen: Any
    ) -> Array:
        """One layer of either stack; `seen` is the encoder's output for the decoder, None for the encoder. `allowed`
        covers own keys, then the encoder's."""
        norm = lambda name, y: rms(y, self.w[f"{at}.{name}.weight"], text.rms_norm_eps)  # noqa: E731
        rope, width, attn = text.rope_parameters[kind], text.head_dim, f"{at}.self_attn"
        y = norm("pre_self_attn_layernorm", x)
        q = turn(norm("self_attn.q_norm", self.heads(f"{attn}.q_proj", y, width)), positions, rope.theta, rope.factor)
        k = turn(norm("self_attn.k_norm", self.heads(f"{attn}.k_proj", y, width)), positions, rope.theta, rope.factor)
        v = self.heads(f"{attn}.v_proj", y, width)
        if seen is not None:  # no RoPE on these keys
            k = np.concatenate([k, norm("self_attn.k_norm", self.heads(f"{attn}.k_proj", seen, width))], axis=1)
            v = np.concatenate([v, self.heads(f"{attn}.v_proj", seen, width)], axis=1)
        y = attention(q, k, v, allowed, text.query_pre_attn_scalar**-0.5, text.attn_logit_softcapping)
        x = x + norm("post_self_attn_layernorm", self.linear(f"{attn}.o_proj", y))
        y = norm("pre_feedforward_layernorm", x)
        y = ACTIVATIONS[text.hidden_activation](self.linear(f"{at}.mlp.gate_proj", y)) * self.linear(
            f"{at}.mlp.up_proj", y
        )
        return x + norm("post_feedforward_layernorm", self.linear(f"{at}.mlp.down_proj", y))

    def encode(
        self, ids: Array, mask: Array, positions: Array, pixels: Array | None = None, given: Any = None
    ) -> Array:
        """`given`: {layer kind: bool (B, S, S)} in the place of window and mask."""
        text, x = self.config.encoder, self.embed(ids)
        if pixels is not None:
            x[ids == self.config.image_token_index] = self.images(pixels).reshape(-1, x.shape[-1])
        q, k = np.mgrid[: ids.shape[1], : ids.shape[1]]
        w = text.sliding_window
        near = ((q - k >= 0) & (q - k < (w + 1) // 2)) | ((k - q > 0) & (k - q < w // 2 + 1))
        for i, kind in enumerate(text.layer_types):
            allowed = mask[:, None, :].astype(bool) & (near if kind == "sliding_attention" else np.ones_like(near))
            allowed = allowed if given is None else given[kind]
            x = self.layer(f"encoder.text_model.layers.{i}", text, kind, x, positions, allowed, None)
        return rms(x, self.w["encoder.text_model.norm.weight"], text.rms_norm_eps)

    def decode(
        self, ids: Array, mask: Array, positions: Array, encoded: Array, encoder_mask: Array, given: Any = None
    ) -> Array:
        """`given`: {layer kind: bool (B, T, T + S_enc)} in the place of causality, window and both masks."""
        text, x, (batch, length) = self.config.decoder, self.embed(ids), ids.shape
        q, k = np.mgrid[:length, :length]
        cross = np.broadcast_to(encoder_mask[:, None, :].astype(bool), (batch, length, encoded.shape[1]))
        for i, kind in enumerate(text.layer_types):
            band = (k <= q) & ((q - k < text.sliding_window) | (kind == "full_attention"))
            allowed = np.concatenate([band & mask[:, None, :].astype(bool), cross], axis=2)
            allowed = allowed if given is None else given[kind]
            x = self.layer(f"decoder.layers.{i}", text, kind, x, positions, allowed, encoded)
        return rms(x, self.w["decoder.norm.weight"], text.rms_norm_eps)

    def logits(self, hidden: Array) -> Array:
        x = np.einsum("btd,vd->btv", hidden, self.w["encoder.text_model.embed_tokens.weight"])
        cap = self.config.decoder.final_logit_softcapping
        return x if cap is None else cap * np.tanh(x / cap)

    def images(self, pixels: Array) -> Array:
        """(I, C, side, side) → (I, M, D): the tower, the average over squares of patches, norm, projection."""
        v, at = self.config.vision, "encoder.vision_tower"
        side, eps = v.patches_per_side, v.layer_norm_eps
        kernel = self.w[f"{at}.embeddings.patch_embedding.weight"]
        x = np.zeros((pixels.shape[0], side * side, v.hidden_size))
        for row in range(side):
            for column in range(side):
                part = (slice(row * v.patch_size, (row + 1) * v.patch_size),)
                part += (slice(column * v.patch_size, (column + 1) * v.patch_size),)
                x[:, row * side + column] = np.einsum(
                    "icyx,dcyx->id", pixels[(slice(None), slice(None), *part)], kernel
                )
        x += self.w[f"{at}.embeddings.patch_embedding.bias"]
        x += self.w[f"{at}.embeddings.position_embedding.weight"]
        for i in range(v.num_hidden_layers):
            x = self.block(f"{at}.encoder.layers.{i}", x, eps)
        x = layer_norm(x, self.w[f"{at}.post_layernorm.weight"], self.w[f"{at}.post_layernorm.bias"], eps)
        square, grid = side // self.config.tokens_per_side, x.reshape(-1, side, side, x.shape[-1])
        tokens = [
            grid[:, row : row + square, column : column + square].mean(axis=(1, 2))
            for row in range(0, side, square)
            for column in range(0, side, square)
        ]
        at = "encoder.multi_modal_projector"
        y = rms(np.stack(tokens, axis=1), self.w[f"{at}.mm_soft_emb_norm.weight"], eps)
        return y @ self.w[f"{at}.mm_input_projection_weight"]

    def block(self, at: str, x: Array, eps: float) -> Array:
        width = self.config.vision.head_dim
        y = layer_norm(x, self.w[f"{at}.layer_norm1.weight"], self.w[f"{at}.layer_norm1.bias"], eps)
        q, k, v = (self.heads(f"{at}.self_attn.{name}_proj", y, width) for name in "qkv")
        everything = np.ones((x.shape[0], x.shape[1], x.shape[1]), bool)
        x = x + self.linear(f"{at}.self_attn.out_proj", attention(q, k, v, everything, width**-0.5))
        y = layer_norm(x, self.w[f"{at}.layer_norm2.weight"], self.w[f"{at}.layer_norm2.bias"], eps)
        return x + self.linear(f"{at}.mlp.fc2", gelu(self.linear(f"{at}.mlp.fc1", y)))
