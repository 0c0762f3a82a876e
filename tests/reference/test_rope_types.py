"""rope_types: every scaled RoPE against its formula in mpmath, and against transformers' own module in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from helpers import DIGITS, U32, U64, Array, close, frozen, on_grid, same_bits
from scaled_ropes import LONGEST, formula, peer, scaled

from conformance.oracle.worst_case import ceiling
from t5g2ref import bundled
from t5g2ref.backend import NUMPY
from t5g2ref.config import Config, Dynamic, Llama3, LongRope, Rope, Ropes, Yarn
from t5g2ref.numerics import SDPA, Numerics
from t5g2ref.rope import inverse_frequencies, tables
from t5g2ref.rope_types import attention_factor

ORACLE, SINGLE = Numerics("float64"), Numerics("float32", SDPA)
WIDTH = 64
ROPES = scaled(WIDTH)
EVERY = pytest.mark.parametrize("name", ROPES)
PLACES = {  # a call's positions; the last is what its length is counted from
    "near": np.arange(65),
    "up to the original length": np.arange(1020, 1024),
    "beyond it": np.arange(1020, 1025),
    "up to the longest": np.arange(4090, 4096),
    "beyond the longest": np.arange(4090, 4097),
    "32K": np.arange(32_760, 32_768),
    "128K": np.arange(131_060, 131_072),
}
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
CALLS = pytest.mark.parametrize("positions", [frozen(p[None]) for p in PLACES.values()], ids=list(PLACES))


def exact_tables(rope: Rope, width: int, positions: Array) -> tuple[Array, Array, Array]:
    """cos, sin and |angle| (1, T, H) of a call."""
    with mp.workdps(DIGITS):
        planes, factor = formula(rope, width, int(positions.max()) + 1)
        angles = [[int(p) * f for f in planes] * 2 for p in positions[0]]
        cos, sin = ([[float(factor * g(a)) for a in row] for row in angles] for g in (mp.cos, mp.sin))
        return np.array([cos]), np.array([sin]), np.array([[[float(a) for a in row] for row in angles]])


# The formulas


@EVERY
@CALLS
def test_against_mpmath(name: str, positions: Array) -> None:
    # Broken by every step that is left out, taken twice or in another order of division: see the wrong ones below.
    rope = ROPES[name]
    *expected, angles = exact_tables(rope, WIDTH, positions)
    plain = np.tile(positions[0][:, None] * rope.theta ** (-np.arange(0, WIDTH, 2) / WIDTH), 2)[None]
    # Exponents cost ln θ u; the steps of the longest formula 40 u, of the larger frequency of a mix.
    bound = (np.log(rope.theta) + 40) * U64 * np.maximum(angles, plain) * 1.5 + 8 * U64
    for found, wanted in zip(tables(ORACLE, rope, WIDTH, positions), expected, strict=True):
        close(found, wanted, atol=bound)


@EVERY
@CALLS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_in_other_types_within_the_worst_case(name: str, positions: Array, dtype: Any) -> None:
    # The judge's bound of a legal peer: it holds, and at each place it is no more than float32 can do to that angle.
    # The count is that of the float64 test above, with float32's rounding; cos and sin have a few of their own, then
    # the type's.
    rope = ROPES[name]
    *expected, angles = exact_tables(rope, WIDTH, positions)
    plain = np.tile(positions[0][:, None] * rope.theta ** (-np.arange(0, WIDTH, 2) / WIDTH), 2)[None]
    most = (np.log(rope.theta) + 40) * U32 * np.maximum(angles, plain) * 1.5 + 16 * U32 + 2 * ROUNDING[dtype]
    found, bounds = (tables(nx, rope, WIDTH, positions) for nx in (Numerics(dtype, SDPA), ceiling(NUMPY, dtype)))
    for value, wanted, bound in zip(found, expected, bounds, strict=True):
        assert (np.abs(value - wanted) <= bound + 2.0**-24).all()
        assert on_grid(value, dtype)
        assert (bound <= most).all()


WRONG = {
    "dynamic": replace(ROPES["dynamic"], factor=1.0),  # never grows
    "yarn": replace(ROPES["yarn"], scaling=Yarn(1024, attention_factor=1.0)),
    "yarn, mscale": replace(ROPES["yarn, mscale"], scaling=Yarn(1024, 30.0, 2.0)),
    "yarn, given": replace(ROPES["yarn, given"], scaling=Yarn(1024)),
    "longrope": replace(ROPES["longrope"], scaling=replace(ROPES["longrope"].scaling, attention_factor=1.0)),  # type: ignore[type-var]
    "longrope, given": ROPES["longrope"],
    "llama3": replace(ROPES["llama3"], scaling=Llama3(1024, 3.0, 3.0001)),  # no smooth middle
    "proportional": Rope(90_000.0, 2.0),  # all planes turn
}


@EVERY
def test_each_is_told_from_a_wrong_one(name: str) -> None:
    positions = frozen(np.arange(5000)[None])
    right, wrong = (tables(SINGLE, rope, WIDTH, positions)[0] for rope in (ROPES[name], WRONG[name]))
    assert (np.abs(right - wrong) > tables(ceiling(NUMPY, "float32"), ROPES[name], WIDTH, positions)[0]).any()


# By hand


def test_literals() -> None:
    near, far = frozen([[0, 7]]), frozen([[8]])
    planes = lambda rope, places=near: inverse_frequencies(ORACLE, rope, 4, places)  # noqa: E731
    # θ 100: planes 1 and 1/10. At length 9 of 8 with factor 8 the base is 100 · (9 − 7)² = 400: 1 and 1/20.
    close(planes(Rope(100.0, 8.0, Dynamic(8))), [1.0, 0.1], rtol=4 * U64)
    close(planes(Rope(100.0, 8.0, Dynamic(8)), far), [1.0, 0.05], rtol=8 * U64)
    long = Rope(100.0, 2.0, LongRope(8, (1.0, 2.0), (4.0, 5.0)))
    close(planes(long), [1.0, 0.05], rtol=4 * U64)
    close(planes(long, far), [0.25, 0.02], rtol=4 * U64)
    assert attention_factor(long) == pytest.approx((4 / 3) ** 0.5, rel=4 * U64)  # 1 + ln 2 / ln 8
    # Waves of 2π and 20π: in 20π positions 10 turns and 1. Kept from 4 turns on, halved below 2.
    close(planes(Rope(100.0, 2.0, Llama3(63, 2.0, 4.0))), [1.0, 0.05], rtol=8 * U64)


def test_a_sequence_that_is_short_keeps_its_frequencies() -> None:
    short, long = frozen([[3, 4095]]), frozen([[3, 4096]])
    same_bits(
        inverse_frequencies(SINGLE, ROPES["dynamic"], WIDTH, short),
        inverse_frequencies(SINGLE, Rope(11_000.0), WIDTH, short),
    )
    for name, rope in ROPES.items():
        changes = not np.array_equal(*(tables(SINGLE, rope, WIDTH, p)[0][:, 0] for p in (short, long)))
        assert changes == (name == "dynamic")


# transformers


def theirs(rope: Rope, width: int) -> Any:
    """transformers' own rotary module of the encoder, with this Rope on both layer types."""
    transformers = peer()
    from transformers.models.t5gemma2 import modeling_t5gemma2 as modeling

    config = Config.load(bundled("tiny"))
    sizes = {"head_dim": width, "max_position_embeddings": LONGEST, "rope_parameters": Ropes(rope, rope)}
    config = replace(config, encoder=replace(config.encoder, **sizes))
    return modeling.T5Gemma2RotaryEmbedding(transformers.T5Gemma2Config(**config.to_dict()).encoder.text_config)


def called(module: Any, positions: Array) -> tuple[Array, Array, Array]:
    """cos, sin and the frequencies of a call of theirs."""
    import torch

    cos, sin = module(torch.zeros(1, 1), torch.from_numpy(np.array(positions)), "full_attention")
    return cos.numpy(), sin.numpy(), module.full_attention_inv_freq.numpy()


@pytest.mark.peer
@EVERY
@CALLS
def test_transformers_has_the_same(name: str, positions: Array) -> None:
    """Powers differ in their last bits between the two libraries, and so do the angles, by as many roundings of them:
    a mix has four, the others three. cos and sin move no faster."""
    cos, sin, frequencies = called(theirs(ROPES[name], WIDTH), positions)
    ours = inverse_frequencies(SINGLE, ROPES[name], WIDTH, positions)
    assert (np.abs(ours - frequencies) <= 4 * np.spacing(frequencies)).all()
    slack = 1.25 * (np.tile(4 * np.spacing(frequencies), 2) * positions[..., None] + 4 * U32)
    slack = slack + 2 * U32 * np.tile(frequencies, 2) * positions[..., None]
    for found, wanted in zip(tables(SINGLE, ROPES[name], WIDTH, positions), (cos, sin), strict=True):
        close(found, wanted.astype(np.float64), atol=slack, dtype="float32")


@pytest.mark.peer
@EVERY
@CALLS
def test_equal_to_the_bit_where_powers_are_exact(name: str, positions: Array) -> None:
    """θ = 2¹⁶ and 16 channels: every power is one of two, and all other steps are the same in the same order. A base
    that has grown is no power of two."""
    rope = replace(scaled(16)[name], theta=2.0**16)
    cos, sin, frequencies = called(theirs(rope, 16), positions)
    if name == "dynamic" and positions.max() >= LONGEST:
        return
    same_bits(inverse_frequencies(SINGLE, rope, 16, positions), frequencies)
    for found, wanted in zip(tables(SINGLE, rope, 16, positions), (cos, sin), strict=True):
        assert (np.abs(found - wanted) <= 4 * U32).all()  # the libraries' own cos and sin, of one angle


@pytest.mark.peer
def test_transformers_keeps_the_longest_length_between_calls() -> None:
    """What is no function of one call, and not computed here: dynamic frequencies outlive their call, until one that is
    shorter than max_position_embeddings. longrope's do not."""
    positions = {n: frozen(np.arange(n)[None]) for n in (4000, 4500, 9000)}
    for name, kept in (("dynamic", True), ("longrope", False)):
        module = theirs(ROPES[name], WIDTH)
        fresh = {n: called(theirs(ROPES[name], WIDTH), p)[2].copy() for n, p in positions.items()}
        after = [called(module, positions[n])[2].copy() for n in (4500, 9000, 4500, 4000, 4500)]
        same_bits(after[0], fresh[4500])
        same_bits(after[1], fresh[9000])
        assert np.array_equal(after[2], fresh[9000 if kept else 4500])
        same_bits(after[3], fresh[4000])
        same_bits(after[4], fresh[4500])
