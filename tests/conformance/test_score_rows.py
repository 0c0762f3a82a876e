"""The kernels that oracles have for attention's scores: on the CPU in emulation, against their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from emulated import needs_compiler
from emulated_device import DEVICE
from helpers import Array, close

from conformance.defects.rounding import HIDDEN_SCORE, twins
from conformance.oracle import score_rows, worst_case
from t5g2ref import attention
from t5g2ref.backend import NUMPY
from t5g2ref.numerics import Numerics

pytestmark = needs_compiler
SCALE, GROUPED = 0.25, (2, 1, 2, 3)


@dataclass(frozen=True)
class Call:
    """Queries (2, 1, 6, 8), keys (2, 1, s, 8), and what the queries may see."""

    q: Array
    k: Array
    allowed: Any

    @property
    def products(self) -> Array:
        return (self.q @ self.k.swapaxes(-1, -2)).reshape(*GROUPED, -1)

    @property
    def sizes(self) -> Array:
        return (np.abs(self.q) @ np.abs(self.k.swapaxes(-1, -2))).reshape(*GROUPED, -1)

    def defined(self, twin: Any, nx: Numerics, cap: float | None) -> Array:
        definition = attention.attention_weights.__wrapped__  # type: ignore[attr-defined]
        made: Array = twin(definition, nx, self.q, self.k, SCALE, cap, self.allowed, (*GROUPED, self.k.shape[2]))
        return made


def call(keys: int, masked: str) -> Call:
    rng = np.random.default_rng(keys)
    q, k = rng.normal(0, 2, (2, 1, 6, 8)), rng.normal(0, 2, (2, 1, keys, 8))
    if not masked:
        return Call(q, k, None)
    allowed = rng.random((2 if masked == "by row" else 1, 1, 1, 3, keys)) < 0.6
    allowed[0, 0, 0, 1] = False  # a query that may see nothing
    return Call(q, k, allowed)


CALLS = pytest.mark.parametrize("keys", [1, 40, 300, 700])
MASKS = pytest.mark.parametrize("masked", ["", "for all", "by row"])
CAPS = pytest.mark.parametrize("cap", [None, 2.5])


@CALLS
@MASKS
@CAPS
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_narrow_softmax(keys: int, masked: str, cap: float | None, half: str) -> None:
    one = call(keys, masked)
    expected = one.defined(twins("D51", half)["attention_weights"], Numerics(), cap)
    found = score_rows.narrow_softmax(DEVICE, one.products, SCALE, cap, one.allowed, half)
    assert found is not None
    # Both round what float64 has; a sum in another order, a hair from a tie, may move a row by an ulp.
    close(found, expected, rtol=2.0 ** (-7 if half == "bfloat16" else -10), atol=2.0**-24)
    assert (found != expected).any(axis=-1).mean() <= 0.02


@CALLS
@MASKS
@CAPS
def test_a_softmax_that_counts_hidden_keys(keys: int, masked: str, cap: float | None) -> None:
    one = call(keys, masked)
    expected = one.defined(twins("D85", "bfloat16")["attention_weights"], Numerics(), cap)
    found = score_rows.counted_softmax(DEVICE, one.products, SCALE, cap, one.allowed, HIDDEN_SCORE)
    close(found, expected, rtol=1e-12)


@CALLS
@MASKS
@CAPS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bound_of_weights(
    keys: int, masked: str, cap: float | None, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, nx = call(keys, masked), worst_case.ceiling(NUMPY, dtype)
    expected = one.defined(worst_case._weights, nx, cap)
    asked = []

    def kernel(xp: Any, *how: Any) -> Any:
        asked.append(how)
        return weights_bound(DEVICE, *how)

    weights_bound = score_rows.weights_bound
    monkeypatch.setattr(worst_case, "has_kernels", lambda xp: True)
    monkeypatch.setattr(score_rows, "weights_bound", kernel)
    found = one.defined(worst_case._weights, nx, cap)
    assert len(asked) == 1
    close(found, expected, rtol=1e-9)


@pytest.mark.parametrize("made", ["narrow_softmax", "counted_softmax"])
def test_a_nan_shows_in_its_row_alone(made: str) -> None:
    one = call(300, "")
    products = one.products.copy()
    products[0, 0, 0, 1, 17] = np.nan
    last = "bfloat16" if made == "narrow_softmax" else HIDDEN_SCORE
    found = getattr(score_rows, made)(DEVICE, products, SCALE, None, None, last)
    assert np.isnan(found[0, 0, 0, 1]).all()
    assert np.isnan(found).sum() == 300


def test_other_arrays_are_left_to_the_definition() -> None:
    one = call(40, "by row")
    for products, allowed in (
        (one.products.astype(np.float32), None),
        (one.products[..., :0], None),
        (one.products, np.ones((2, 1, 2, 3, 40), bool)),  # a mask by head
        (one.products, np.ones((3, 40), bool)),
    ):
        assert score_rows.counted_softmax(DEVICE, products, SCALE, None, allowed, HIDDEN_SCORE) is None
    assert score_rows.counted_softmax(np, one.products, SCALE, None, None, HIDDEN_SCORE) is None
