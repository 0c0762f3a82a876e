"""The SigLIP tower (Zhai et al., 2023) and the projector into the text model's width."""

from __future__ import annotations

from t5g2ref.attention import Keys, attend, merge_heads, split_heads
from t5g2ref.blocks import rowwise
from t5g2ref.cache import KeyValue
from t5g2ref.config import Config, VisionConfig
from t5g2ref.numerics import Array, Numerics, twinned
from t5g2ref.ops import gelu_tanh, layer_norm, rms_norm
from t5g2ref.trace import OFF, Trace
from t5g2ref.weights import Biased, Encoder, Projector, VisionLayer, VisionTower


def image_features(nx: Numerics, w: Encoder, config: Config, pixels: Array, trace: Trace = OFF) -> Array:
    """pixels (I, C, side, side) in [-1, 1] → features (I, M, D_text), M = mm_tokens_per_image."""
    assert w.vision_tower is not None, "inputs.pixel_values comes first"
    assert w.multi_modal_projector is not None
    encoded = tower(nx, w.vision_tower, config.vision, pixels, trace.at("vision_tower"))
    return project(nx, w.multi_modal_projector, config, encoded, trace.at("multi_modal_projector"))


def tower(nx: Numerics, w: VisionTower, config: VisionConfig, pixels: Array, trace: Trace = OFF) -> Array:
    """pixels (I, C, side, side) → (I, P, D): patches, learned positions, pre-norm blocks, a last LayerNorm."""
    x = trace("embeddings.patch_embedding", patches(nx, w.embeddings.patch_embedding, config, pixels))
    x = trace("embeddings", nx.add(x, nx.weight(w.embeddings.position_embedding.weight)))
    for i, layer in enumerate(w.encoder.layers):
        x = block(nx, layer, config, x, trace.at(f"encoder.layers.{i}"))
        x = trace(f"encoder.layers.{i}", x)
    norm = w.post_layernorm
    return trace("post_layernorm", layer_norm(nx, x, norm.weight, norm.bias, config.layer_norm_eps))


def patches(nx: Numerics, w: Biased, config: VisionConfig, pixels: Array) -> Array:
    """A convolution whose stride is its kernel is a matrix product on the cut-out patches: (I, P, D), row by row.
    What is left over at the right and lower edge is dropped ("valid")."""
    size, grid = config.patch_size, config.patches_per_side
    images, channels = pixels.shape[:2]
    x = nx.array(pixels)[:, :, : grid * size, : grid * size]
    x = x.reshape(images, channels, grid, size, grid, size).transpose(0, 2, 4, 1, 3, 5)
    x = x.reshape(images, grid * grid, channels * size * size)
    return nx.linear(x, w.weight.reshape(w.weight.shape[0], -1), w.bias)


def block(nx: Numerics, w: VisionLayer, config: VisionConfig, x: Array, trace: Trace = OFF) -> Array:
    """One pre-norm transformer block: x (I, P, D) → (I, P, D). Every patch sees every patch, at scale 1/√head_dim."""
    return feed_forward(nx, w, config, x, attention(nx, w, config, x, trace), trace)


def attention(nx: Numerics, w: VisionLayer, config: VisionConfig, x: Array, trace: Trace) -> Array:
    """x (I, P, D) → the heads' outputs (I, P, D). Queries, keys and values end here: of a picture they are large."""
    q, k, v = heads(nx, w, config, x, trace)
    keys = [Keys(KeyValue(k, v))]
    return trace("self_attn.attention", merge_heads(attend(nx, q, keys, scale=config.head_dim**-0.5)))


@rowwise("x", axis=2)
def heads(nx: Numerics, w: VisionLayer, config: VisionConfig, x: Array, trace: Trace) -> tuple[Array, Array, Array]:
    """x (I, P, D) → queries, keys and values (I, N, P, H), with biases on all projections."""
    normed = trace("layer_norm1", layer_norm(nx, x, w.layer_norm1.weight, w.layer_norm1.bias, config.layer_norm_eps))
    own, inner = w.self_attn, trace.at("self_attn")
    q = split_heads(inner("q_proj", nx.linear(normed, own.q_proj.weight, own.q_proj.bias)), config.head_dim)
    k = split_heads(inner("k_proj", nx.linear(normed, own.k_proj.weight, own.k_proj.bias)), config.head_dim)
    v = split_heads(inner("v_proj", nx.linear(normed, own.v_proj.weight, own.v_proj.bias)), config.head_dim)
    return q, k, v


@rowwise("x", "attended")
def feed_forward(nx: Numerics, w: VisionLayer, config: VisionConfig, x: Array, attended: Array, trace: Trace) -> Array:
    """x and the heads' outputs (I, P, D) → (I, P, D): the last projection, the feed-forward, and both residuals."""
    x = trace("attn_residual", added_linear(nx, x, attended, w.self_attn.out_proj, "self_attn.out_proj", trace))
    normed = trace("layer_norm2", layer_norm(nx, x, w.layer_norm2.weight, w.layer_norm2.bias, config.layer_norm_eps))
    hidden = trace("mlp.activation_fn", activated_linear(nx, normed, w.mlp.fc1, "mlp.fc1", trace))
    return added_linear(nx, x, hidden, w.mlp.fc2, "mlp.fc2", trace)


@twinned
def added_linear(nx: Numerics, residual: Array, x: Array, w: Biased, name: str, trace: Trace = OFF) -> Array:
    """residual + linear(x), which is rounded before the sum; tap `name` shows it."""
    return nx.add(residual, trace(name, nx.linear(x, w.weight, w.bias)))


@twinned
def activated_linear(nx: Numerics, x: Array, w: Biased, name: str, trace: Trace = OFF) -> Array:
    """gelu_tanh(linear(x)), the argument rounded; tap `name` shows it."""
    return gelu_tanh(nx, trace(name, nx.linear(x, w.weight, w.bias)))


@twinned
def average(nx: Numerics, squares: Array) -> Array:
    """(I, side, kernel, side, kernel, D) → (I, side, side, D): the mean of each square of patches, rounded once."""
    return nx.cast(nx.wide(squares).mean(axis=(2, 4)))


def project(nx: Numerics, w: Projector, config: Config, encoded: Array, trace: Trace = OFF) -> Array:
    """(I, P, D) → (I, M, D_text): average the patch grid in squares, RMSNorm, then a matrix stored (vision, text)."""
    side, images = config.tokens_per_side, encoded.shape[0]
    kernel = config.vision.patches_per_side // side
    squares = encoded.reshape(images, side, kernel, side, kernel, -1)
    pooled = trace("avg_pool", average(nx, squares).reshape(images, side * side, -1))
    normed = trace("mm_soft_emb_norm", rms_norm(nx, pooled, w.mm_soft_emb_norm.weight, config.vision.layer_norm_eps))
    return trace("projected", nx.linear(normed, w.mm_input_projection_weight.T))
