"""The comparison of these tests can fail: each way to be wrong is refused by it."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import close, frozen, on_grid, same_bits


def test_close_accepts_what_is_within_the_bound() -> None:
    close(np.array([1.0, 2.5]), np.array([1.0, 2.0]), atol=np.array([0.0, 0.5]))


@pytest.mark.parametrize(
    ("actual", "expected", "match"),
    [
        (np.ones((2, 1)), np.ones(2), "shape"),
        (np.ones(2), np.ones(1), "shape"),  # would broadcast
        (np.ones(2, np.float32), np.ones(2), "dtype"),
        (np.array([1.0, np.nan]), np.ones(2), "not finite"),
        (np.array([1.0, np.inf]), np.ones(2), "not finite"),
        (np.ones(2), np.array([1.0, np.nan]), "itself is not finite"),
        (np.array([np.nan]), np.array([np.nan]), "not finite"),
        (np.ones(0), np.ones(0), "empty"),
        (np.array([1.0, 1.2]), np.ones(2), r"1 of 2 values are off; at \(1,\)"),
    ],
)
def test_close_refuses(actual: object, expected: object, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        close(actual, expected, atol=0.1)


def test_close_refuses_a_nan_tolerance() -> None:
    with pytest.raises(AssertionError, match="values are off"):
        close(np.ones(1), np.ones(1), atol=np.nan)


def test_same_bits_tells_minus_zero_from_zero() -> None:
    with pytest.raises(AssertionError, match="differ"):
        same_bits(np.array([-0.0]), np.array([0.0]))


def test_frozen_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        frozen([1.0])[0] = 2.0


def test_on_grid_refuses_what_lies_between_and_nan() -> None:
    assert on_grid(np.float32([1.0, 1.0078125]), "bfloat16")  # 1 + 2⁻⁷ is the number after 1
    assert not on_grid(np.float32([1.00390625]), "bfloat16")
    assert not on_grid(np.float32([np.nan]), "bfloat16")
