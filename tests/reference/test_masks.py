"""masks: the drawings in the docstrings are the literals of these tests; bands against the rules one pair at a time."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import Array
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref.config import Config, TextConfig
from t5g2ref.masks import EVERYTHING, Band, Given, decoder_band, encoder_band

SLIDING, FULL = "sliding_attention", "full_attention"
BOUNDS = st.none() | st.integers(0, 9)


def text(config: Config, window: int) -> TextConfig:
    return replace(config.encoder, sliding_window=window)


def drawn(function: object) -> list[list[str]]:
    """The pictures in a docstring, left to right: rows of x and dots in columns."""
    rows = re.findall(r"^ *([x.]{3,}(?: +[x.]{3,})*)$", function.__doc__ or "", re.MULTILINE)
    return [list(column) for column in zip(*(row.split() for row in rows), strict=True)]


def picture(band: Band, length: int) -> list[str]:
    positions = np.arange(length)
    allowed = band.allows(positions, positions)
    assert allowed.dtype == bool
    assert allowed.shape == (length, length)
    return ["".join("x" if seen else "." for seen in row) for row in allowed]


def brute(band: Band, q: int, k: int) -> bool:
    """The module's rule in words: q − back ≤ k ≤ q + ahead, a None side unbounded."""
    return (band.back is None or q - band.back <= k) and (band.ahead is None or k <= q + band.ahead)


# The drawings


def test_encoder_drawings(config: Config) -> None:
    assert "W = 3, then W = 4" in (encoder_band.__doc__ or "")
    odd, even = drawn(encoder_band)
    assert len(odd) == len(even) == 6
    assert picture(encoder_band(text(config, 3), SLIDING), 6) == odd
    assert picture(encoder_band(text(config, 4), SLIDING), 6) == even


def test_decoder_drawings(config: Config) -> None:
    assert "W = 3, then no window" in (decoder_band.__doc__ or "")
    windowed, whole = drawn(decoder_band)
    assert len(windowed) == len(whole) == 6
    assert picture(decoder_band(text(config, 3), SLIDING), 6) == windowed
    assert picture(decoder_band(text(config, 3), FULL), 6) == whole


def test_a_wrong_drawing_would_be_seen() -> None:
    # The parser reads what stands there, so the two tests above can fail.
    def wrong() -> None:
        """xx.   x..
        xxx   xx.
        .xx   xx.
        """

    assert drawn(wrong) == [["xx.", "xxx", ".xx"], ["x..", "xx.", "xx."]]


# The rules


@given(window=st.integers(1, 12), length=st.integers(1, 30))
def test_encoder_rule(config: Config, window: int, length: int) -> None:
    # By the definition: 0 ≤ q − k < (W + 1) // 2 or 0 < k − q < W // 2 + 1. Broken by W − 1 on each side (D30), by an
    # off-by-one on either side for odd or even W (D31), by a causal encoder (D35).
    expected = [
        "".join("x" if 0 <= q - k < (window + 1) // 2 or 0 < k - q < window // 2 + 1 else "." for k in range(length))
        for q in range(length)
    ]
    assert picture(encoder_band(text(config, window), SLIDING), length) == expected


@given(window=st.integers(1, 12), length=st.integers(1, 30))
def test_decoder_rule(config: Config, window: int, length: int) -> None:
    # By the definition: causal, and q − k < W in sliding layers. Broken by ≤ (D34).
    expected = ["".join("x" if 0 <= q - k < window else "." for k in range(length)) for q in range(length)]
    assert picture(decoder_band(text(config, window), SLIDING), length) == expected


@given(window=st.integers(1, 600))
def test_an_interior_query_sees_as_many_keys_as_the_window_says(config: Config, window: int) -> None:
    keys, query = np.arange(3 * window), np.array([window + window // 2])
    for band in (encoder_band(text(config, window), SLIDING), decoder_band(text(config, window), SLIDING)):
        assert int(band.allows(query, keys).sum()) == window
        assert band.allows(query, query).all(), "a query sees itself"


@pytest.mark.parametrize("window", [1, 6, 7])
def test_full_layers_know_no_window(config: Config, window: int) -> None:
    assert encoder_band(text(config, window), FULL) == EVERYTHING == Band(None, None)
    assert picture(EVERYTHING, 5) == ["xxxxx"] * 5
    assert decoder_band(text(config, window), FULL) == Band(None, 0)


def test_each_layer_type_has_its_own_stack_and_window(config: Config) -> None:
    # Broken by one stack's window read for both (7 and 6 here), or by the pattern inverted (D33).
    assert encoder_band(config.encoder, SLIDING) == Band(3, 3)
    assert decoder_band(config.decoder, SLIDING) == Band(5, 0)


# Blocks


@given(BOUNDS, BOUNDS, st.integers(0, 20), st.integers(1, 6), st.integers(0, 20), st.integers(0, 8))
def test_allows_is_the_rule_at_absolute_positions(
    back: int | None, ahead: int | None, first: int, rows: int, low: int, keys: int
) -> None:
    band = Band(back, ahead)
    queries, positions = np.arange(first, first + rows), np.arange(low, low + keys)
    expected = [[brute(band, q, k) for k in positions.tolist()] for q in queries.tolist()]
    assert band.allows(queries, positions).tolist() == expected
    assert band.allows(queries, positions).shape == (rows, keys)


@given(BOUNDS, BOUNDS, st.integers(0, 25), st.integers(1, 7), st.integers(0, 20))
def test_span_is_exactly_what_some_query_of_the_block_can_see(
    back: int | None, ahead: int | None, first: int, rows: int, keys: int
) -> None:
    # Too small loses keys, too large costs them: a sliding layer's cost is this range.
    band = Band(back, ahead)
    seen = [k for k in range(keys) if any(brute(band, q, k) for q in range(first, first + rows))]
    low, high = band.span(first, first + rows - 1, keys)
    assert list(range(low, high)) == seen
    assert 0 <= low <= high <= keys, "an empty span is still a slice"


def test_a_mask_is_never_written_into() -> None:
    positions: Array = np.arange(4)
    positions.flags.writeable = False
    assert Band(1, 0).allows(positions, positions).flags.writeable  # a new array: callers may narrow it


# Given masks


@given(first=st.integers(0, 5), cut=st.tuples(st.integers(0, 3), st.integers(1, 3)), low=st.integers(0, 6))
def test_a_given_mask_is_looked_up_by_absolute_positions(first: int, cut: tuple[int, int], low: int) -> None:
    mask = np.arange(2 * 6 * 9).reshape(2, 6, 9) % 5 < 2
    queries, keys = np.arange(first + cut[0], first + sum(cut)), np.arange(low, 9)
    found = Given(mask=mask, first=first).allows(queries, keys)
    assert found.tolist() == [[[bool(row[q - first][k]) for k in keys] for q in queries] for row in mask]


def test_a_given_mask_is_no_distance_and_reaches_all_keys() -> None:
    mask = Given(mask=np.ones((1, 2, 3), bool))
    assert mask != EVERYTHING
    assert (mask.by_distance, Band(1, 2).by_distance) == (False, True)
    assert mask.span(1, 1, 7) == (0, 7)
