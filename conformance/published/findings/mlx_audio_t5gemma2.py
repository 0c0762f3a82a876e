"""T5Gemma 2 in mlx-audio, in bfloat16: norms and the activation round more often than the model's definition does.

    pip install mlx-audio numpy          # on Linux also "mlx[cpu]"
    python mlx_audio_t5gemma2.py

Inputs are numbers of bfloat16. Each result is compared with float64, in units of the last place that it keeps. A value
that is rounded once is at most half a unit off.
"""

# mypy: ignore-errors
import math
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_audio.tts.models.breeze_tts.breeze_tts import _T5Gemma2RMSNorm as Breeze
from mlx_audio.tts.models.irodori_tts.t5gemma2 import RMSNorm as Irodori

WIDTH, EPS, ROUNDED_ONCE = 1152, 1e-6, 0.51


def numbers(shape: tuple, scale: float) -> mx.array:
    return mx.array(np.random.default_rng(0).normal(0, scale, shape)).astype(mx.bfloat16)


def wide(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def units(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|found − exact| in units of bfloat16's last place: 8 bits."""
    place = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - 7)
    return np.abs(found - exact) / place


def told(what: str, found: np.ndarray, exact: np.ndarray) -> bool:
    off = units(found, exact)
    wrong = bool(off.max() > ROUNDED_ONCE)
    share = 100 * float((off > ROUNDED_ONCE).mean())
    print(
        f"{'WRONG' if wrong else 'right'}  {what}: at most {off.max():.2f} units off, {share:.0f} % beyond half a unit"
    )
    return wrong


def main() -> int:
    x, w = numbers((64, WIDTH), 3.0), numbers((WIDTH,), 0.3)
    root = 1 / np.sqrt((wide(x) ** 2).mean(axis=-1, keepdims=True) + EPS)
    exact = wide(x) * root * (1 + wide(w))
    wrong = False
    for name, kind in (("Irodori", Irodori), ("Breeze", Breeze)):
        norm = kind(WIDTH, EPS)
        norm.weight = w
        wrong |= told(f"{name}'s RMSNorm in bfloat16", wide(norm(x)), exact)
    single = mx.fast.rms_norm(x.astype(mx.float32), 1.0 + w.astype(mx.float32), EPS).astype(mx.bfloat16)
    told("the same in float32, rounded at the end", wide(single), exact)
    g = wide(x)
    gelu = 0.5 * g * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
    found = wide(nn.gelu_approx(x))
    for where, there in (("above 0", g > 0), ("from -3 to 0", (g > -3) & (g < 0))):
        wrong |= told(f"nn.gelu_approx in bfloat16, inputs {where}", found[there], gelu[there])
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
