"""How far a float32 angle of RoPE may be from the true one, for each type of RoPE.

The bounds are of first order: every step's rounding, times what the later steps make of it. A mix of two frequencies is
off by its weight's error times the larger one, which is the plain frequency.
"""

from __future__ import annotations

import math

from t5g2ref.config import Dynamic, Llama3, LongRope, Rope, Yarn
from t5g2ref.numerics import Array, Numerics
from t5g2ref.rope import inverse_frequencies
from t5g2ref.rope_types import growth


def roundoffs(nx: Numerics, rope: Rope, head_dim: int, positions: Array, loose: int) -> Array:
    """The bound of every plane's angle, in units of float32's roundoff, (B, T, H/2).

    A rounding of the exponent moves the power by ln θ times as much. `loose` is a float32 function's error in ulps.
    """
    own, steps = rope.scaling, 3 * loose + abs(math.log(rope.theta))
    if isinstance(own, Dynamic):
        longest = int(positions.max()) + 1
        larger = float(growth(float, rope, own, head_dim, longest))
        steps += loose + math.log(larger) + 3 * (1 + max(rope.factor, 1.0)) * head_dim / (head_dim - 2)
    elif isinstance(own, LongRope):
        steps += loose
    elif isinstance(own, Yarn):
        steps += 2 * loose
    elif isinstance(own, Llama3):
        turns = 2 * loose + abs(math.log(rope.theta))
        steps += loose + turns * own.high_freq_factor / (own.high_freq_factor - own.low_freq_factor)
    mixed = Rope(rope.theta) if isinstance(own, Yarn | Llama3) else rope
    frequencies = inverse_frequencies(nx, mixed, head_dim, positions)
    size: Array = nx.xp.abs(positions[..., None] * frequencies)
    return steps * size
