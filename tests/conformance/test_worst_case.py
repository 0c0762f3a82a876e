"""The worst-case bounds of a half-precision lane: no legal run is above them, and what rounds once more is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import close, normal, rounded

from conformance.cases import catalogue as cases
from conformance.checkpoints import resolve
from conformance.defects.rounding import twins
from conformance.judge.judge import judge
from conformance.oracle.worst_case import SMALLEST, ceiling
from conformance.peers.reference import ReferencePeer
from t5g2ref import bundled
from t5g2ref.attention import attention_weights
from t5g2ref.backend import NUMPY
from t5g2ref.config import Config
from t5g2ref.dtypes import HALF, DType
from t5g2ref.numerics import EAGER, FLASH, RUNNING, SDPA, TIES, Numerics
from t5g2ref.ops import gelu_tanh, layer_norm, rms_norm, softcap
from t5g2ref.rope import rotate, tables

pytestmark = pytest.mark.slow  # minutes in all

TYPES: list[DType] = ["bfloat16", "float16"]
PROFILES = [SDPA, EAGER, RUNNING, FLASH, TIES]


def operands(name: str, half: DType, *shape: int, scale: float = 1.0) -> Any:
    return rounded(normal(name, *shape, scale=scale), half)


OPERATIONS: dict[str, Callable[[Numerics, DType], Any]] = {
    "rms_norm": lambda nx, h: rms_norm(nx, operands("n", h, 40, 64, scale=30), operands("w", h, 64), 1e-6),
    "layer_norm": lambda nx, h: layer_norm(
        nx, operands("l", h, 40, 64) + np.float32(8), operands("w", h, 64), operands("b", h, 64), 1e-6
    ),
    "gelu": lambda nx, h: gelu_tanh(nx, operands("g", h, 50, 64, scale=3)),
    "softcap": lambda nx, h: softcap(nx, operands("c", h, 50, 64, scale=40), 30.0),
    "softcap of small numbers": lambda nx, h: softcap(nx, operands("c", h, 50, 64, scale=1e-3), 30.0),
    "add": lambda nx, h: nx.add(operands("a", h, 50, 64), operands("b", h, 50, 64)),
    "mul": lambda nx, h: nx.mul(operands("a", h, 50, 64), operands("b", h, 50, 64)),
    "linear": lambda nx, h: nx.linear(operands("x", h, 50, 96), operands("v", h, 64, 96)),
    "linear with bias": lambda nx, h: nx.linear(
        operands("x", h, 50, 96), operands("v", h, 64, 96), operands("b", h, 64)
    ),
    "rotate": lambda nx, h: rotate(
        nx, operands("r", h, 2, 3, 9, 16), operands("cos", h, 2, 9, 16), operands("sin", h, 2, 9, 16)
    ),
}


EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


def true(half: DType) -> Numerics:
    return Numerics("float64", embed_dtype=half)


def bounded(operation: Callable[[Numerics, DType], Any], nx: Numerics, half: DType) -> float:
    """The largest |error| / bound of the operation under `nx`."""
    error = np.abs(np.asarray(operation(nx, half), np.float64) - operation(true(half), half))
    return float((error / (np.abs(operation(ceiling(NUMPY, half), half)) + SMALLEST[half])).max())


@pytest.mark.parametrize("half", TYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_legal_run_is_above_its_bound_and_the_bound_is_near(name: str, half: DType) -> None:
    found = [bounded(OPERATIONS[name], Numerics(half, profile), half) for profile in PROFILES]
    assert max(found) <= 1
    loose = name in ("rotate", "softcap", "softcap of small numbers")  # several roundings seldom add up
    assert max(found) > (0.2 if loose else 0.7), "a bound that nothing comes near proves nothing"


@pytest.mark.parametrize("half", TYPES)
def test_a_bias_may_be_added_after_a_rounding_and_not_after_two(half: DType) -> None:
    """As GPU libraries have it. A bias of more bits than the type, or one rounding more, is above the bound."""
    x, v, b = operands("x", half, 50, 96), operands("v", half, 64, 96), operands("b", half, 64)
    bound = np.abs(ceiling(NUMPY, half).linear(x, v, b)) + SMALLEST[half]
    truth = true(half).linear(x, v, b)
    product = rounded(np.asarray(x, np.float64) @ np.asarray(v, np.float64).T, half)
    twice = rounded(product + b, half)
    assert (np.abs(twice - truth) / bound).max() <= 1
    assert np.mean(np.abs(twice - truth) > 0.51 * 2.0 ** np.floor(np.log2(np.abs(truth))) * EPS[half]) > 0.2
    for wrong in (twice + 0.02 * np.abs(twice), rounded(product + b * np.float32(1.02), half)):
        assert (np.abs(wrong - truth) / bound).max() > 1


@pytest.mark.parametrize("half", TYPES)
@pytest.mark.parametrize(
    ("name", "defect"), [("rms_norm", "D11"), ("rms_norm", "D12"), ("rms_norm", "D13"), ("gelu", "D52")]
)
def test_a_defect_of_rounding_is_above_it(name: str, defect: str, half: DType) -> None:
    faulty = Numerics(half, SDPA, NUMPY.with_twins(twins(defect, half)))
    assert bounded(OPERATIONS[name], faulty, half) > 1.1


@pytest.mark.parametrize("half", TYPES)
def test_tables_at_far_positions(half: DType) -> None:
    config = Config.load(bundled("tiny"))
    kind, width = config.decoder.rope_parameters["full_attention"], config.decoder.head_dim
    positions = np.array([[0, 1, 1000, 131071]])
    truth, bound = (tables(nx, kind, width, positions) for nx in (true(half), ceiling(NUMPY, half)))
    for found, expected, limit in zip(tables(Numerics(half, SDPA), kind, width, positions), truth, bound, strict=True):
        assert (np.abs(found - expected) <= np.abs(limit) + SMALLEST[half]).all()


@pytest.mark.parametrize("half", TYPES)
@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_attention(half: DType, scale: float, cap: float | None) -> None:
    """Weights and what is made of the values with them, small scores and large ones."""
    q, k, v = (operands(name, half, 1, 2, 7, 16, scale=scale) for name in "qkv")
    allowed = np.tril(np.ones((7, 7), bool))[None, None, None]

    def attended(nx: Numerics, values: Any) -> Any:
        weights = attention_weights(nx, q, k, 0.25, cap, allowed, (1, 2, -1, 7, 7))
        return nx.matmul(weights.reshape(1, 2, 7, 7), values)

    bound = attended(ceiling(NUMPY, half), np.abs(v))
    for profile in PROFILES:
        error = np.abs(attended(Numerics(half, profile), v) - attended(true(half), v.astype(np.float64)))
        assert (error <= bound + SMALLEST[half]).all()


@pytest.mark.parametrize("half", TYPES)
@pytest.mark.parametrize("name", ["window", "images", "padded-left-cached", "sequence-multi"])
def test_every_profile_conforms_through_the_whole_model(name: str, half: DType) -> None:
    (target,) = resolve("tiny-even", synthetic=False)
    (case,) = cases.select(cases.build(target.config), [name])
    for profile in PROFILES:
        peer = ReferencePeer(NUMPY, half)
        peer._nx = replace(peer._nx, profile=profile)
        peer.open(target)
        result = judge(peer, target, case, repeat=False)
        assert result.passed, result.culprit
        assert max(f.ceiling for f in result.local if f.ceiling == f.ceiling) <= 1


@pytest.mark.parametrize("half", TYPES)
def test_one_element_off_by_two_steps_of_the_type_is_proof(half: DType) -> None:
    """Half a step is legal, so one step may be; two never are."""
    x, y = operands("a", half, 5, 32), operands("b", half, 5, 32)
    wrong = Numerics(half, SDPA).add(x, y)
    step = np.abs(np.nextafter(wrong[2, 3].astype(HALF[half]), HALF[half](np.inf)).astype(np.float32) - wrong[2, 3])
    wrong[2, 3] += 2 * step
    error = np.abs(wrong - (x.astype(np.float64) + y))
    assert np.argwhere(error > ceiling(NUMPY, half).add(x.astype(np.float64), y)).tolist() == [[2, 3]]


def test_a_bound_beyond_float32_is_formed_in_float64() -> None:
    """Finite rows of a broken peer may be: an infinite bound would let anything pass."""
    rows, weight = np.full((2, 64), 3e37), np.full((5, 64), 2.0, np.float32)
    nx = ceiling(NUMPY, "bfloat16")
    found = nx.linear(rows, weight)
    size = 64 * 3e37 * 2
    close(found, np.full((2, 5), nx.u * size + (64 + 4) * 2.0**-24 * size), rtol=1e-12)
