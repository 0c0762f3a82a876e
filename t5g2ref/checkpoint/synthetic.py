"""Seeded weights of trained-like statistics at any geometry, tensor by tensor.

Weights drawn from N(0, 0.02) never leave the range of 30 and hide what overflow, cancellation and rounding do. Real
Gemma 3 weights put about 1e5 on one channel of the bos token's residual and have norm weights up to 1.7e3. Here the
same is planted by construction: one channel of the residual belongs to bos, and in three layers of each stack the
feed-forward block writes about 4e4 into it, through a post-norm weight of 1.7e3. All other statistics keep the
activations of ordinary tokens near 1 and the model far from chaos, so that float32 and float64 stay comparable.

Every tensor comes from a generator seeded by (seed, name): any one can be made without the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5g2ref.config import Config
from t5g2ref.dtypes import HALF
from t5g2ref.params import shapes

Array = np.ndarray[Any, Any]

BOS_LAYERS = (1, 2, 3)  # where the massive activation is written
AT_ONCE = 1 << 19  # numbers that are drawn in float32 before they are rounded: they stay in the cache
QUIET = 1e-5  # the factor on everything else that would write into bos's channel
_NORMS = {  # name: centre and spread of 1 + weight
    "pre_self_attn_layernorm": (1.5, 0.4),
    "post_self_attn_layernorm": (0.4, 0.15),
    "pre_feedforward_layernorm": (1.5, 0.4),
    "post_feedforward_layernorm": (0.4, 0.15),
    "q_norm": (1.4, 0.3),
    "k_norm": (1.4, 0.3),
    "mm_soft_emb_norm": (1.0, 0.2),
    "norm": (6.0, 2.0),
}


class Synthetic(Mapping[str, Array]):
    """canonical name → float32 array on the bfloat16 grid, made when asked for.

    Args:
        config: the geometry.
        seed: another seed is another checkpoint of the same statistics.
        massive: plant the massive activation. Without it every value stays within float16, which ends at 65504.
    """

    def __init__(self, config: Config, seed: int = 0, *, massive: bool = True) -> None:
        self._config, self._seed, self._massive = config, seed, massive
        self._shapes = shapes(config)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, name: str) -> Array:
        value = self.narrow(name).astype(np.float32)
        value.flags.writeable = False
        return value

    def narrow(self, name: str) -> Array:
        """The tensor in bfloat16, which has all its values."""
        shape = self._shapes[name]
        rng = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode())]))
        value = np.empty(shape, HALF["bfloat16"])
        rows = len(value) if value.ndim == 1 else max(1, AT_ONCE * len(value) // value.size)
        for first in range(0, len(value), rows):  # some rows at a time: no second copy of a table is ever in memory
            part = value[first : first + rows]
            drawn = _drawn(rng, name, shape, part.shape)
            if self._massive and not name.startswith(("encoder.vision_tower", "encoder.multi_modal")):
                self._give_channel_to_bos(name, drawn, first)
            part[...] = drawn
        value.flags.writeable = False
        return value

    def _give_channel_to_bos(self, name: str, value: Array, first: int) -> None:
        """Plant the massive activation: the channel is nearly silent everywhere but on bos's path.

        `value` is the tensor's rows from the one of number `first` on.
        """
        channel = self._config.decoder.hidden_size // 3

        def row(number: int) -> slice:
            """That row of the tensor, where it is one of these."""
            return slice(number - first, number - first + 1) if number >= first else slice(0, 0)

        if name.endswith("embed_tokens.weight"):
            value[:, channel] *= QUIET
            value[row(self._config.decoder.bos_token_id), channel] = 0.8
        elif name.endswith(("eoi_embedding", "o_proj.weight", "o_proj.bias")):
            value[row(channel)] *= QUIET
        elif name.endswith("down_proj.weight"):
            value[row(channel)] *= QUIET
            if self._plants(name):
                value[row(channel), 0] = 1.0
        elif name.endswith(("gate_proj.weight", "up_proj.weight")) and self._plants(name):
            value[row(0)] = 0.0
            value[row(0), channel] = 0.5
        elif name.endswith("post_feedforward_layernorm.weight") and self._plants(name):
            value[row(channel)] = 1.7e3
        elif name.endswith(("pre_feedforward_layernorm.weight", "pre_self_attn_layernorm.weight")):
            value[row(channel)] = 0.0

    def _plants(self, name: str) -> bool:
        return any(f".layers.{layer}." in name for layer in BOS_LAYERS)


def _drawn(rng: np.random.Generator, name: str, shape: tuple[int, ...], part: tuple[int, ...]) -> Array:
    """The next rows of one tensor of ordinary statistics: float32 in the shape of `part`, writable."""
    kind = name.split(".")[-2]
    value: Array = rng.standard_normal(part, dtype=np.float32)
    if kind in _NORMS:
        centre, spread = _NORMS[kind]
        return value * np.float32(spread) + np.float32(centre - 1.0)
    if "layer_norm" in kind or kind == "post_layernorm":
        return value * np.float32(0.2) + np.float32(name.endswith("weight"))
    if name.endswith("bias"):
        return value * np.float32(0.1)
    if kind == "position_embedding":
        return value * np.float32(0.3)
    if name.endswith(("eoi_embedding",)):
        return value
    fan_in = shape[0] if name.endswith("mm_input_projection_weight") else int(np.prod(shape[1:]))
    value *= np.float32(fan_in**-0.5)
    return value
