"""The kernels that sum a tap on a device: on the CPU in emulation, against the definition with arrays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emulated import needs_compiler
from emulated_device import DEVICE
from helpers import HALF, close
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conformance.measure import sums, sums_at_once
from conformance.measure.sums import moments
from t5g2ref.backend import NUMPY

pytestmark = needs_compiler
TYPES: dict[str, Any] = {"float64": np.float64, "float32": np.float32, **HALF}
SMALLEST = 2.0**-126


@st.composite
def taps(draw: Any) -> dict[str, Any]:
    """A tap's numbers: of the peer and the controls in one type, of truth and patterns in float64."""
    parts = draw(st.sampled_from([1, 1, 2, 3]))
    return {
        "tokens": draw(st.integers(1, 3)),
        "parts": parts,
        "width": draw(st.sampled_from([1, 2, 31, 64, 127, 128, 129, 300])),
        "controls": draw(st.integers(1, 7)),
        "patterns": draw(st.integers(0, 4)),
        "dtype": draw(st.sampled_from(sorted(TYPES))),
        "bounded": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


BASE = {"tokens": 2, "parts": 2, "width": 70, "controls": 5, "patterns": 4, "dtype": "bfloat16", "bounded": True}


def made(tap: dict[str, Any]) -> tuple[list[Any], Any]:
    """Its rows, and the bound."""
    rng = np.random.default_rng(tap["seed"])
    shape = tap["tokens"], tap["parts"] * tap["width"]
    truth = rng.normal(size=shape) * 10.0 ** rng.integers(-6, 3, shape)
    truth[rng.random(shape) < 0.1] = 0.0
    near = [
        (truth * (1 + rng.normal(size=shape) * 0.01)).astype(TYPES[tap["dtype"]]) for _ in range(1 + tap["controls"])
    ]
    patterns = [truth * (1 + rng.normal(size=shape) * 0.02) for _ in range(tap["patterns"])]
    return [truth, *near, *patterns], np.abs(truth) * 0.01 if tap["bounded"] else None


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(tap=taps())
@example(tap={**BASE, "seed": 1})
@example(tap={**BASE, "seed": 2, "dtype": "float16", "controls": 7, "patterns": 7})
@example(tap={**BASE, "seed": 3, "parts": 1, "width": 2 * sums_at_once.PIECE + 5, "patterns": 1})
def test_they_are_the_definitions(tap: dict[str, Any]) -> None:
    rows, bound = made(tap)
    asked = (rows, bound, 1 + tap["controls"], tap["parts"] if tap["patterns"] else 0, SMALLEST)
    assert sums_at_once.takes(DEVICE, *asked[:-1])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        expected = sums._sums(np, *asked)
    found = sums_at_once.sums(DEVICE, *asked)
    assert found.shape == expected.shape
    # Sums of up to 16 384 terms of either sign: each is off by roundings of the sum of their sizes.
    close(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max(axis=1, keepdims=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("row", [1, 2])
def test_what_is_not_finite_stays_so(bad: float, row: int) -> None:
    rows, bound = made({**BASE, "seed": 4})
    rows[row] = rows[row].copy()
    rows[row][1, 3] = bad
    with np.errstate(invalid="ignore"):
        expected = sums._sums(np, rows, bound, 6, 2, SMALLEST)
    found = sums_at_once.sums(DEVICE, rows, bound, 6, 2, SMALLEST)
    assert not np.isfinite(found[row, 1])
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_array_equal(np.isnan(found[7:13]), np.isnan(expected[7:13]))


ROW = np.zeros((2, 4))
OTHERS = {
    "a type that they do not know": ([ROW, ROW.astype(np.int32)], 1),
    "too many rows": ([ROW] * 17, 1),
    "too many errors": ([ROW] * 12, 9),
    "no token": ([ROW[:0]] * 3, 1),
}


@pytest.mark.parametrize("why", OTHERS)
def test_other_taps_are_left_to_arrays(why: str) -> None:
    rows, errors = OTHERS[why]
    assert sums_at_once.takes(DEVICE, [ROW] * 3, None, 1, 0)
    assert not sums_at_once.takes(DEVICE, rows, None, errors, 0)


@pytest.mark.parametrize("dtype", HALF)
def test_numbers_of_a_half_type_are_read_as_they_are(dtype: str) -> None:
    """Of every exponent, infinity and NaN among them. The truth is 0, so that each error is the number."""
    words = np.concatenate([np.arange(0, 1 << 16, 997), [1, 0x3FF, 0x7C00, 0x7C01, 0x7F80, 0x7FC0, 0xFF80]])
    values = words.astype(np.uint16).view(HALF[dtype])[:, None]
    found = sums_at_once.sums(DEVICE, [np.zeros(values.shape), values], None, 1, 0, 0.0)
    np.testing.assert_allclose(found[1], np.abs(values[:, 0].astype(np.float64)), rtol=2.0**-52)


def test_moments_are_those_of_the_kernels_on_a_device() -> None:
    tap = {**BASE, "seed": 5}
    rows, bound = made(tap)
    truth, peer, *others = [row[None] for row in rows]
    controls, patterns = others[:5], others[5:]
    how = ((0, 1), truth, peer, controls, bound[None], patterns, SMALLEST, tap["parts"])
    device = SimpleNamespace(xp=DEVICE, host=np.asarray)
    found, expected = moments(device, *how), moments(NUMPY, *how)  # type: ignore[arg-type]
    for name in ("norm", "errors", "top", "square", "gram"):
        close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
    assert (found.features, found.bounded) == (expected.features, True)
