"""Inverse frequencies of the scaled RoPE types of config.json, and the factor that two of them put on the tables.

Each is a function of the numbers of its file and, for two, of the call's length: the largest position of all rows,
plus 1. So a row of `dynamic` or `longrope` depends on the rows beside it, and cached keys keep the angles of the call
that made them. Both are what transformers does. Its `dynamic` also remembers the longest call: a shorter one after it,
still beyond `max_position_embeddings`, gets the longer one's frequencies. Here a call depends on nothing before it.

Steps are in the order and the type of transformers 5.24, so that float32 has its roundings; the formulas are from:
dynamic: "NTK-aware scaled RoPE" (bloc97, emozilla, 2023). yarn: Peng et al., arXiv 2309.00071, sections 3.2 to 3.4.
longrope: Ding et al., arXiv 2402.13753. llama3: Llama Team, arXiv 2407.21783, and its released code. proportional:
Gemma 4's configuration, where the planes behind the first ones stand still.
"""

from __future__ import annotations

import math
from typing import Any

from t5g2ref.config import Dynamic, Llama3, LongRope, Proportional, Rope, Scaling, Yarn
from t5g2ref.numerics import Array


def scaled(xp: Any, kind: Any, rope: Rope, given: Scaling, exponent: Array, length: int) -> Array:
    """Radians a position of every plane, for a Rope with a scaling.

    Args:
        kind: the scalar type of every step.
        exponent: 2i/H of the H/2 planes, in that type.
        length: the largest position of the call plus 1.
    """
    match given:
        case Dynamic():
            return kind(1) / (kind(rope.theta) * growth(kind, rope, given, 2 * len(exponent), length)) ** exponent
        case LongRope():
            divisors = given.long_factor if length > given.original_max_position_embeddings else given.short_factor
            return kind(1) / (xp.asarray(divisors, dtype=kind) * kind(rope.theta) ** exponent)
        case Yarn():
            return _yarn(xp, kind, rope, given, kind(rope.theta) ** exponent)
        case Llama3():
            return _llama3(xp, kind, rope, given, kind(1) / kind(rope.theta) ** exponent)
        case Proportional():  # theta's exponent stays that of the whole head
            turning = int(given.partial_rotary_factor * 2 * len(exponent) // 2)
            plain = kind(1) / kind(rope.theta) ** exponent
            return xp.where(xp.arange(len(exponent)) < turning, plain, kind(0)) / kind(rope.factor)


def by_length(rope: Rope) -> bool:
    """Whether the frequencies depend on the call's length."""
    return isinstance(rope.scaling, Dynamic | LongRope)


def attention_factor(rope: Rope) -> float:
    """What cos and sin are multiplied by: q and k both, so that scores have its square. 1 for most types.

    yarn has 0.1 ln(factor) + 1 (its paper, section 3.4), or a quotient of two where `mscale` and `mscale_all_dim` are
    given (DeepSeek-V2's). longrope has √(1 + ln(factor) / ln(original length)) (its paper, section 3.3).
    """
    given = rope.scaling
    if not isinstance(given, Yarn | LongRope):
        return 1.0
    if given.attention_factor is not None:
        return given.attention_factor
    if rope.factor <= 1.0:
        return 1.0
    if isinstance(given, LongRope):
        return math.sqrt(1 + math.log(rope.factor) / math.log(given.original_max_position_embeddings))
    if given.mscale and given.mscale_all_dim:
        return _temperature(rope.factor, given.mscale) / _temperature(rope.factor, given.mscale_all_dim)
    return _temperature(rope.factor, 1.0)


def _temperature(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0


def ramp_ends(rope: Rope, given: Yarn, head_dim: int) -> tuple[float, float]:
    """The planes between which yarn goes from kept to divided: those with beta_fast and beta_slow turns within the
    original length, to whole planes outward, in float64 for every profile."""

    def plane(turns: float) -> float:
        wave = given.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(wave) / (2 * math.log(rope.theta))

    low, high = max(math.floor(plane(given.beta_fast)), 0), min(math.ceil(plane(given.beta_slow)), head_dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn(xp: Any, kind: Any, rope: Rope, given: Yarn, powers: Array) -> Array:
    low, high = ramp_ends(rope, given, 2 * len(powers))
    ramp = xp.clip((xp.arange(len(powers), dtype=kind) - kind(low)) / kind(high - low), kind(0), kind(1))
    kept = kind(1) - ramp
    return kind(1) / (kind(rope.factor) * powers) * (kind(1) - kept) + kind(1) / powers * kept


def growth(kind: Any, rope: Rope, given: Dynamic, head_dim: int, length: int) -> Any:
    """What the base is multiplied by at this length; 1 up to `max_position_embeddings`."""
    if length <= given.max_position_embeddings:
        return kind(1)
    longer = kind(rope.factor) * kind(length) / kind(given.max_position_embeddings) - kind(rope.factor - 1)
    return longer ** kind(head_dim / (head_dim - 2))


def _llama3(xp: Any, kind: Any, rope: Rope, given: Llama3, plain: Array) -> Array:
    """The mix is clipped to 0 and 1, which is the same as three cases of the wave's length."""
    wave = kind(2 * math.pi) * (kind(1) / plain)
    turns = kind(given.original_max_position_embeddings) * (kind(1) / wave)
    mix = (turns - kind(given.low_freq_factor)) / kind(given.high_freq_factor - given.low_freq_factor)
    mix = xp.clip(mix, kind(0), kind(1))
    return (kind(1) - mix) * plain / kind(rope.factor) + mix * plain
