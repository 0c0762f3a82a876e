"""RoPE types that no release has, at a width, and their formulas written a second time in mpmath."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import pytest

from t5g2ref.config import Dynamic, Llama3, LongRope, Proportional, Rope, Yarn

LONGEST = 4096  # max_position_embeddings of these


def peer() -> Any:
    """transformers of a release that computes all of these for this model; without one the test is skipped. Before 5.22
    longrope raises in a second long call. 5.1 has no proportional, and no yarn within a layer type."""
    pytest.importorskip("torch", reason="needs torch: transformers' modules are compared")
    return pytest.importorskip("transformers", minversion="5.22", reason="needs transformers 5.22 or later")


def scaled(width: int, longest: int = LONGEST, original: int = 1024) -> dict[str, Rope]:
    """Each type with other numbers than its defaults, so that no two of them are alike."""
    planes = range(width // 2)
    short, long = (tuple(1 + step * (i + 1) for i in planes) for step in (0.0625, 0.75))
    return {
        "dynamic": Rope(11_000.0, 3.0, Dynamic(longest)),
        "yarn": Rope(70_000.0, 8.0, Yarn(original)),
        "yarn, mscale": Rope(70_000.0, 40.0, Yarn(original, 30.0, 2.0, mscale=0.75, mscale_all_dim=1.5)),
        "yarn, given": Rope(70_000.0, 5.0, Yarn(original, attention_factor=0.8)),
        "longrope": Rope(12_000.0, 32.0, LongRope(original, short, long)),
        "longrope, given": Rope(12_000.0, 32.0, LongRope(original, short, long, attention_factor=1.25)),
        "llama3": Rope(500_000.0, 8.0, Llama3(original, 1.5, 5.0)),
        "proportional": Rope(90_000.0, 2.0, Proportional(0.5)),
    }


def formula(rope: Rope, width: int, length: int) -> tuple[list[Any], Any]:
    """The planes' radians a position, and what cos and sin are multiplied by, in mpmath."""
    own, theta, s = rope.scaling, mp.mpf(rope.theta), mp.mpf(rope.factor)
    if isinstance(own, Dynamic):
        over = max(mp.mpf(length) / own.max_position_embeddings, 1)
        theta *= (s * over - (s - 1)) ** (mp.mpf(width) / (width - 2))
    plain = [theta ** (-mp.mpf(2 * i) / width) for i in range(width // 2)]
    if isinstance(own, Yarn):
        return _yarn(own, s, theta, plain, width), _yarn_factor(own, s)
    if isinstance(own, LongRope):
        lists = own.long_factor if length > own.original_max_position_embeddings else own.short_factor
        ratio = mp.sqrt(1 + mp.log(s) / mp.log(own.original_max_position_embeddings))
        given = own.attention_factor
        return [f / by for f, by in zip(plain, lists, strict=True)], ratio if given is None else mp.mpf(given)
    if isinstance(own, Llama3):
        return [_llama3(own, s, f) for f in plain], mp.mpf(1)
    if isinstance(own, Proportional):
        turning = int(width * own.partial_rotary_factor) // 2
        return [f / s if i < turning else mp.mpf(0) for i, f in enumerate(plain)], mp.mpf(1)
    return (plain if isinstance(own, Dynamic) else [f / s for f in plain]), mp.mpf(1)


def _yarn(own: Yarn, s: Any, theta: Any, plain: list[Any], width: int) -> list[Any]:
    """Plane d has β turns in the original length L where θ^(2d/H) · 2πβ = L."""
    ends = [
        mp.log(own.original_max_position_embeddings / (2 * mp.pi * turns)) / mp.log(theta) * width / 2
        for turns in (own.beta_fast, own.beta_slow)
    ]
    low, high = max(int(mp.floor(ends[0])), 0), min(int(mp.ceil(ends[1])), width - 1)
    found = []
    for i, f in enumerate(plain):
        slow = min(max(mp.mpf(i - low) / (high - low), 0), 1)
        found.append(slow * f / s + (1 - slow) * f)
    return found


def _yarn_factor(own: Yarn, s: Any) -> Any:
    if own.attention_factor is not None:
        return mp.mpf(own.attention_factor)
    if own.mscale is None:
        return 1 + mp.log(s) / 10
    return (1 + mp.mpf(own.mscale) * mp.log(s) / 10) / (1 + mp.mpf(own.mscale_all_dim) * mp.log(s) / 10)


def _llama3(own: Llama3, s: Any, f: Any) -> Any:
    """By the length of the wave, 2π/f: kept below L/high, divided above L/low, mixed between."""
    turns = own.original_max_position_embeddings * f / (2 * mp.pi)
    if turns >= own.high_freq_factor:
        return f
    if turns <= own.low_freq_factor:
        return f / s
    smooth = (turns - own.low_freq_factor) / (mp.mpf(own.high_freq_factor) - own.low_freq_factor)
    return (1 - smooth) * f / s + smooth * f
