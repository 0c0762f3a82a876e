"""The operations that are compared: each by transformers' own module or function, and by the reference's emulation."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import T5Gemma2Config
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.t5gemma2 import modeling_t5gemma2 as modeling

from t5g2ref import ops, rope, vision
from t5g2ref import outputs as heads
from t5g2ref.attention import Keys, attend
from t5g2ref.cache import KeyValue
from t5g2ref.config import VisionConfig, preset
from t5g2ref.dtypes import DType, to_grid
from t5g2ref.embedding import embed
from t5g2ref.masks import Band
from t5g2ref.numerics import EAGER, FLASH, SDPA, Numerics
from t5g2ref.weights import Biased, Embedding

Array = np.ndarray[Any, Any]
Ours = Callable[[Numerics], Array]
PROFILES = (EAGER, SDPA, FLASH)
CONFIG = preset("270m")
WIDTH, HEAD, FFN = CONFIG.encoder.hidden_size, CONFIG.encoder.head_dim, CONFIG.encoder.intermediate_size
VOCABULARY, VISION, EPS = 2000, CONFIG.vision.hidden_size, CONFIG.encoder.rms_norm_eps


class Kit:
    """Inputs of one half type, for both sides."""

    def __init__(self, dtype: DType) -> None:
        self.dtype: DType = dtype
        self.torch_dtype: torch.dtype = getattr(torch, dtype)
        self._rng = np.random.default_rng(20251212)

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        """float32 on the type's grid."""
        return to_grid(self._rng.normal(size=shape).astype(np.float32) * np.float32(scale), self.dtype)

    def ids(self, *shape: int) -> Array:
        return self._rng.integers(0, VOCABULARY, shape)

    def tensor(self, x: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.torch_dtype)

    def filled(self, module: torch.nn.Module, **weights: Array) -> torch.nn.Module:
        """The module in this type, with these parameters; buffers stay as they are."""
        for name, value in weights.items():
            module.get_parameter(name).data = self.tensor(value)
        assert {name for name, _ in module.named_parameters()} == set(weights), "every parameter is given"
        return module.eval()


Operation = Callable[[Kit], tuple[torch.Tensor, Ours]]
OPERATIONS: dict[str, Operation] = {}


def operation(name: str) -> Callable[[Operation], Operation]:
    def register(function: Operation) -> Operation:
        OPERATIONS[name] = function
        return function

    return register


@operation("embedding")
def _embedding(k: Kit) -> tuple[torch.Tensor, Ours]:
    table, special, ids = k.normal(VOCABULARY, WIDTH, scale=0.05), k.normal(WIDTH), k.ids(2, 64)
    ids[0, 3] = ids[1, 5] = eoi = 17
    module = modeling.T5Gemma2TextScaledWordEmbedding(VOCABULARY, WIDTH, 0, WIDTH**0.5, eoi)
    k.filled(module, weight=table, eoi_embedding=special)
    w = Embedding(table, special)
    return module(torch.from_numpy(ids)), lambda nx: embed(nx, w, ids, eoi)


def _rms(k: Kit, width: int, *shape: int) -> tuple[torch.Tensor, Ours]:
    x, w = k.normal(*shape, width, scale=3.0), k.normal(width)
    module = k.filled(modeling.T5Gemma2RMSNorm(width, EPS), weight=w)
    return module(k.tensor(x)), lambda nx: ops.rms_norm(nx, nx.array(x), w, EPS)


@operation("RMSNorm")
def _rms_norm(k: Kit) -> tuple[torch.Tensor, Ours]:
    return _rms(k, WIDTH, 2, 64)


@operation("q/k norm")
def _head_norm(k: Kit) -> tuple[torch.Tensor, Ours]:
    return _rms(k, HEAD, 2, 4, 64)


def _tables(k: Kit, kind: str) -> tuple[torch.Tensor, Ours]:
    positions = np.arange(0, 4096, 7)[None]
    module = modeling.T5Gemma2RotaryEmbedding(T5Gemma2Config(**CONFIG.to_dict()).decoder)
    cos, sin = module(k.tensor(np.zeros((1, 1), np.float32)), torch.from_numpy(positions), kind)

    def ours(nx: Numerics) -> Array:
        return np.stack(rope.tables(nx, CONFIG.decoder.rope_parameters[kind], HEAD, positions))

    return torch.stack([cos, sin]), ours


@operation("RoPE tables, sliding")
def _sliding_tables(k: Kit) -> tuple[torch.Tensor, Ours]:
    return _tables(k, "sliding_attention")


@operation("RoPE tables, full")
def _full_tables(k: Kit) -> tuple[torch.Tensor, Ours]:
    return _tables(k, "full_attention")


@operation("RoPE rotation")
def _rotation(k: Kit) -> tuple[torch.Tensor, Ours]:
    x, angle = k.normal(2, 4, 64, HEAD), np.random.default_rng(1).uniform(0, 6.3, (2, 64, HEAD))
    cos, sin = (to_grid(f(angle).astype(np.float32), k.dtype) for f in (np.cos, np.sin))
    turned, _ = modeling.apply_rotary_pos_emb(k.tensor(x), k.tensor(x), k.tensor(cos), k.tensor(sin))
    return turned, lambda nx: rope.rotate(nx, nx.array(x), nx.array(cos), nx.array(sin))


def _linear(k: Kit, inside: int, outside: int, bias: bool) -> tuple[torch.Tensor, Ours]:
    x, w = k.normal(2, 64, inside), k.normal(outside, inside, scale=inside**-0.5)
    weights = {"weight": w} | ({"bias": k.normal(outside)} if bias else {})
    module = k.filled(torch.nn.Linear(inside, outside, bias=bias), **weights)
    return module(k.tensor(x)), lambda nx: nx.linear(nx.array(x), w, weights.get("bias"))


@operation("linear")
def _plain_linear(k: Kit) -> tuple[torch.Tensor, Ours]:
    return _linear(k, WIDTH, FFN, bias=False)


@operation("linear with bias")
def _biased_linear(k: Kit) -> tuple[torch.Tensor, Ours]:
    return _linear(k, VISION, VISION, bias=True)


def _attention(k: Kit, forward: Callable[..., Any]) -> tuple[torch.Tensor, Ours]:
    """The heads of 270m, sliding, 64 positions and a window of 33."""
    n, groups, length = CONFIG.encoder.num_attention_heads, CONFIG.encoder.num_key_value_heads, 64
    q, key, value = (k.normal(2, heads, length, HEAD) for heads in (n, groups, groups))
    scale, band = CONFIG.encoder.query_pre_attn_scalar**-0.5, Band(16, 16)
    allowed = band.allows(np.arange(length), np.arange(length))
    mask: torch.Tensor = torch.from_numpy(allowed)[None, None].expand(2, 1, -1, -1)
    if forward is modeling.eager_attention_forward:
        mask = torch.where(mask, 0.0, torch.finfo(k.torch_dtype).min).to(k.torch_dtype)
    module = SimpleNamespace(num_key_value_groups=n // groups, training=False, is_causal=False)
    seen, _ = forward(module, *map(k.tensor, (q, key, value)), mask, scaling=scale)

    def ours(nx: Numerics) -> Array:
        source = Keys(KeyValue(nx.array(key), nx.array(value)), None, band)
        return attend(nx, nx.array(q), [source], scale=scale).swapaxes(1, 2)

    return seen, ours


@operation("attention, eager")
def _eager(k: Kit) -> tuple[torch.Tensor, Ours]:
    return _attention(k, modeling.eager_attention_forward)


@operation("attention, sdpa")
def _sdpa(k: Kit) -> tuple[torch.Tensor, Ours]:
    return _attention(k, sdpa_attention_forward)


@operation("GELU tanh")
def _gelu(k: Kit) -> tuple[torch.Tensor, Ours]:
    x = k.normal(2, 64, FFN, scale=2.0)
    return ACT2FN["gelu_pytorch_tanh"](k.tensor(x)), lambda nx: ops.gelu_tanh(nx, nx.array(x))


@operation("gate product")
def _product(k: Kit) -> tuple[torch.Tensor, Ours]:
    a, b = k.normal(2, 64, FFN), k.normal(2, 64, FFN)
    return k.tensor(a) * k.tensor(b), lambda nx: nx.mul(nx.array(a), nx.array(b))


@operation("residual add")
def _residual(k: Kit) -> tuple[torch.Tensor, Ours]:
    a, b = k.normal(2, 64, WIDTH, scale=30.0), k.normal(2, 64, WIDTH)
    return k.tensor(a) + k.tensor(b), lambda nx: nx.add(nx.array(a), nx.array(b))


@operation("LayerNorm")
def _layer_norm(k: Kit) -> tuple[torch.Tensor, Ours]:
    x, w, b, eps = k.normal(2, 64, VISION, scale=3.0), k.normal(VISION), k.normal(VISION), CONFIG.vision.layer_norm_eps
    module = k.filled(torch.nn.LayerNorm(VISION, eps), weight=w, bias=b)
    return module(k.tensor(x)), lambda nx: ops.layer_norm(nx, nx.array(x), w, b, eps)


@operation("patch convolution")
def _convolution(k: Kit) -> tuple[torch.Tensor, Ours]:
    size, side = CONFIG.vision.patch_size, 8 * CONFIG.vision.patch_size
    pixels, w, b = k.normal(1, 3, side, side), k.normal(VISION, 3, size, size, scale=0.04), k.normal(VISION)
    module = k.filled(torch.nn.Conv2d(3, VISION, size, size), weight=w, bias=b)
    config = VisionConfig(VISION, FFN, 1, 4, image_size=side, patch_size=size)
    weights = Biased(w, b)
    seen = module(k.tensor(pixels)).flatten(2).transpose(1, 2)
    return seen, lambda nx: vision.patches(nx, weights, config, pixels)


@operation("average pooling")
def _pooling(k: Kit) -> tuple[torch.Tensor, Ours]:
    x = k.normal(1, 16, 16, VISION)
    seen = torch.nn.AvgPool2d(4, 4)(k.tensor(x.transpose(0, 3, 1, 2))).flatten(2).transpose(1, 2)

    def ours(nx: Numerics) -> Array:  # as in vision.project
        squares = nx.wide(nx.array(x)).reshape(1, 4, 4, 4, 4, VISION)
        return nx.cast(squares.mean(axis=(2, 4))).reshape(1, 16, VISION)

    return seen, ours


@operation("projector")
def _projector(k: Kit) -> tuple[torch.Tensor, Ours]:
    """Norm and matrix behind the pooling, from the pooled tokens on."""
    x, norm, w = k.normal(1, 64, VISION), k.normal(VISION), k.normal(VISION, WIDTH, scale=VISION**-0.5)
    eps = CONFIG.vision.layer_norm_eps
    module = k.filled(modeling.T5Gemma2RMSNorm(VISION, eps), weight=norm)
    seen = torch.matmul(module(k.tensor(x)), k.tensor(w))
    return seen, lambda nx: nx.linear(ops.rms_norm(nx, nx.array(x), norm, eps), w.T)


@operation("lm_head")
def _lm_head(k: Kit) -> tuple[torch.Tensor, Ours]:
    x, w = k.normal(2, 64, WIDTH), k.normal(VOCABULARY, WIDTH, scale=0.05)
    module = k.filled(modeling.T5Gemma2LMHead(WIDTH, VOCABULARY), **{"out_proj.weight": w})
    return module(k.tensor(x)), lambda nx: heads.lm_logits(nx, w, CONFIG, nx.array(x))


@operation("cross-entropy")
def _cross_entropy(k: Kit) -> tuple[torch.Tensor, Ours]:
    """By row, in float32 on both sides: `ulps` are float32's."""
    logits, labels = k.normal(128, VOCABULARY, scale=3.0), k.ids(128)
    pairs = [(logits[i : i + 1], labels[i : i + 1]) for i in range(128)]
    loss = torch.nn.functional.cross_entropy
    seen = torch.stack([loss(k.tensor(x).float(), torch.from_numpy(y)) for x, y in pairs])
    return seen, lambda nx: np.stack([heads.cross_entropy(nx, nx.array(x), y) for x, y in pairs])
