"""The ratio of one tap is what it says: by hand, and by its properties."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import U32, Array, generator
from hypothesis import given
from hypothesis import strategies as st
from one_tap import off_by, see

from conformance.measure import distance
from conformance.measure.limits import FEW_NUMBERS
from t5g2ref.taps import Tap

WIDTHS = [5, 24]  # few numbers a token, and enough


# Ratios by hand. ‖truth‖ is 4 at every token, so that an error of e is e / 4 of the value.


@pytest.mark.parametrize(("error", "ratio"), [(0.0, 0.0), (2**-10, 1.0), (2**-9, 2.0), (-(2**-9), 2.0), (2**-7, 8.0)])
def test_ratio_of_two_distances(error: float, ratio: float, truth: Array) -> None:
    found = see(off_by(truth, error), truth, [off_by(truth, 2**-10)])
    assert (found.worst, found.median, found.p99) == (ratio, ratio, ratio)
    assert (found.peer_error, found.control_error) == (abs(error) / 4, 2**-12)
    assert found.passed  # 8.0 is the limit, and passes


def test_figures_over_tokens() -> None:
    """Ratios 1 to 200: the 198th is the 99 % one, and the median lies between the two in the middle."""
    truth = np.ones((1, 200, FEW_NUMBERS))
    peer = truth.astype(np.float32)
    peer[0, :, 0] += np.arange(1, 201, dtype=np.float32) * np.float32(2**-10)
    found = see(peer, truth, [off_by(truth, 2**-10)])
    assert (found.worst, found.p99, found.median) == (200.0, 198.0, 100.5)
    assert (found.token, found.status) == ((0, 199), "values")
    assert see(peer, truth, [off_by(truth, 2**-10)], gate="median", limit=100.5).passed
    assert not see(peer, truth, [off_by(truth, 2**-10)], gate="median", limit=100.4).passed


def test_the_limit_is_the_last_ratio_that_passes(truth: Array) -> None:
    peer, control = off_by(truth, 2**-7), off_by(truth, 2**-10)
    assert see(peer, truth, [control], limit=8.0).passed
    assert see(peer, truth, [control], limit=np.nextafter(8.0, 0)).status == "values"


def test_largest_control_is_the_yardstick(truth: Array) -> None:
    controls = [off_by(truth, e) for e in (2**-12, 2**-10, 0.0)]
    assert see(off_by(truth, 2**-9), truth, controls).worst == 2.0
    assert see(off_by(truth, 2**-9), truth, controls[:1]).worst == 8.0


def test_exact_control_leaves_the_roundoff_as_floor(truth: Array) -> None:
    """u · ‖truth‖ = 2⁻²⁴ · 4: no float32 array can promise to be closer."""
    exact = truth.astype(np.float32)
    found = see(off_by(truth, 2**-20), truth, [exact])
    assert (found.worst, found.control_error) == (2**-20 / (U32 * 4), U32)
    few = truth[..., :4]
    assert see(off_by(few, 2**-20), few, [exact[..., :4]]).worst == 2**-20 / (U32 * 2)


def test_floor_follows_the_type(truth: Array) -> None:
    """In float16 the same distance is 2¹³ times less: its unit roundoff is 2⁻¹¹."""
    peer, exact = off_by(truth, 2**-10).astype(np.float16), truth.astype(np.float32)
    assert see(peer, truth, [exact], dtype="float16").worst == 2**-10 / (2**-11 * 4)


@pytest.mark.parametrize("width", [1, FEW_NUMBERS - 1, FEW_NUMBERS])
def test_a_lucky_control_does_not_make_a_bad_peer(width: int, truth: Array) -> None:
    """Where one token of the control happens to be exact, the median over the tokens stands in."""
    truth = truth[..., :width]
    control = off_by(truth, 2**-10)
    control[1, 1] = 1
    found = see(off_by(truth, 2**-9), truth, [control])
    assert (found.worst, found.median) == (2.0, 2.0)


@pytest.mark.parametrize(("width", "ratio"), [(4, 1.0), (FEW_NUMBERS - 1, 1.0), (FEW_NUMBERS, 32.0)])
def test_what_is_typical(width: int, ratio: float, truth: Array) -> None:
    """A token of 2⁻⁵ with an exact control, among tokens of 1 whose control is 2⁻¹⁰ off. With enough numbers in a
    token it may be off by their relative error, 2⁻¹² · (2⁻⁵ · 4); with few by their absolute one, 2⁻¹⁰."""
    mixed = truth[..., :width].copy()
    mixed[1, 1] = 2**-5
    control = off_by(mixed, 2**-10)
    control[1, 1] = 2**-5
    found = see(off_by(mixed, 2**-10), mixed, [control], limit=100.0)
    assert (found.worst, found.median) == (ratio, 1.0)
    assert found.token == ((1, 1) if ratio > 1 else (0, 0))


@pytest.mark.parametrize("width", [4, FEW_NUMBERS])
def test_all_zero_is_exact(width: int) -> None:
    zero = np.zeros((2, 5, width))
    found = see(zero.astype(np.float32), zero, [zero.astype(np.float32)])
    assert (found.status, found.worst, found.peer_error) == ("pass", 0.0, 0.0)


@pytest.mark.parametrize("width", [4, FEW_NUMBERS])
@pytest.mark.parametrize("gate", ["worst", "median"])
def test_anything_where_all_is_zero_is_infinitely_off(gate: Any, width: int) -> None:
    zero = np.zeros((2, 5, width))
    found = see(np.full(zero.shape, 1e-30, np.float32), zero, [zero.astype(np.float32)], gate=gate)
    assert (found.status, found.worst) == ("values", math.inf)


@pytest.mark.parametrize("gate", ["worst", "median"])
@pytest.mark.parametrize("which", ["truth", "control"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("width", [4, FEW_NUMBERS])
def test_a_broken_reference_excuses_nobody(width: int, value: float, which: str, gate: Any, truth: Array) -> None:
    """NaN and infinity on our own side must not read as ‘no error’ or as ‘any error is allowed’."""
    truth = truth[..., :width]
    peer, control, true = off_by(truth, 1e3, (1, 2)), off_by(truth, 2**-10), truth.copy()
    (true if which == "truth" else control)[1, 2, 3] = value
    with np.errstate(invalid="ignore"):
        found = see(peer, true, [control], gate=gate)
        assert found.status == "values"
        assert math.isnan(found.worst)
        assert "not finite" in found.detail
        assert see(truth.astype(np.float32), true, [control], gate=gate).status == "values"


def test_gates_differ(truth: Array) -> None:
    """One bad token of ten: every token is judged locally, their median from the ids on."""
    control = off_by(truth, 2**-10)
    peer = off_by(control.astype(np.float64), 1.0, (0, 3))
    worst, median = (see(peer, truth, [control], gate=gate) for gate in ("worst", "median"))
    assert (worst.status, median.status) == ("values", "pass")
    assert worst.worst == median.worst == 1025.0
    assert (median.median, median.token) == (1.0, (0, 3))
    bad = see(off_by(truth, 1.0), truth, [control], gate="median")
    assert bad.status == "values"
    assert "the median token is 1,024 times" in bad.detail


def test_scalar() -> None:
    """A loss has no token axes: one token, without an index."""
    tap, truth = Tap("loss", "", "all", "loss"), np.array(2.0)
    found = see(np.array(2 + 2**-9, np.float32), truth, [np.array(2 + 2**-10, np.float32)], tap=tap)
    assert (found.status, found.worst, found.token, found.tokens) == ("pass", 2.0, (), 1)
    assert see(np.array(math.nan, np.float32), truth, [truth], tap=tap).status == "nan"
    assert see(None, truth, [truth], tap=tap).detail.startswith("expected a scalar ()")


# Properties


def drawn(seed: int, width: int, tokens: int = 37) -> tuple[Array, Array, list[Array]]:
    """Random (peer, truth, controls) whose control is 1e-7 and whose peer about 3e-7 off."""
    rng = np.random.default_rng([seed, generator("compare").integers(1 << 30)])
    truth = rng.normal(size=(1, tokens, width))
    arrays = [(truth + e * rng.normal(size=truth.shape)).astype(np.float32) for e in (3e-7, 1e-7, 1e-7)]
    return arrays[0], truth, arrays[1:]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("chunk", [1, 24, 25, 100, 1 << 22])
def test_chunks_change_nothing(chunk: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, truth, controls = drawn(1, width)
    valid = np.arange(37)[None] % 5 > 0
    whole = see(peer, truth, controls, valid)
    monkeypatch.setattr(distance, "CHUNK", chunk)
    assert see(peer, truth, controls, valid) == whole


@given(seed=st.integers(0, 1 << 20), width=st.sampled_from(WIDTHS), exponent=st.integers(-60, 60))
def test_ratio_has_no_unit(seed: int, width: int, exponent: int) -> None:
    """Everything times 2ᵏ, which is exact: the same finding to the bit."""
    peer, truth, controls = drawn(seed, width)
    factor = np.float32(2.0**exponent)
    scaled = see(peer * factor, truth * factor, [c * factor for c in controls])
    assert scaled == see(peer, truth, controls)


@given(seed=st.integers(0, 1 << 20), width=st.sampled_from(WIDTHS))
def test_order_of_tokens_does_not_matter(seed: int, width: int) -> None:
    peer, truth, controls = drawn(seed, width)
    order = np.random.default_rng(seed).permutation(truth.shape[1])
    plain = see(peer, truth, controls)
    moved = see(peer[:, order], truth[:, order], [c[:, order] for c in controls])
    assert order[moved.token[1]] == plain.token[1]
    assert replace(moved, token=plain.token) == plain


@given(seed=st.integers(0, 1 << 20), width=st.sampled_from(WIDTHS), factor=st.floats(1.0, 1e6))
def test_a_worse_peer_has_a_larger_ratio(seed: int, width: int, factor: float) -> None:
    peer, truth, controls = drawn(seed, width)
    worse = (truth + factor * (peer - truth)).astype(np.float32)
    # one rounding to float32 moves a token by at most u · ‖peer‖, and the yardstick is never below u · ‖truth‖
    slack = 1.0 + 1e-3
    assert see(worse, truth, controls).worst >= see(peer, truth, controls).worst - slack
