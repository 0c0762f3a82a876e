"""One tap against truth and control: every gate can fail, nothing empty passes, and the ratio is what it says."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import U32, Array, frozen, generator
from hypothesis import given
from hypothesis import strategies as st

from conformance.measure import distance
from conformance.measure.finding import FAULTS, Finding
from conformance.measure.limits import FEW_NUMBERS
from conformance.measure.ratio import examine
from t5g2ref import taps
from t5g2ref.config import Config
from t5g2ref.taps import Tap

VALUES = Tap("decoder.norm", "B T D", "decoder", "norm:out")
MASK = Tap("decoder.layers.0.self_attn.mask", "B T S", "decoder", "self_attn:mask")
LIMIT = 8.0
WIDTHS = [5, 24]  # few numbers a token, and enough

# Every shape of the tap table: the axes that count tokens, one array shape, and the index of one of its tokens.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "B T D": ((0, 1), (2, 5, 6), (1, 3)),
    "B T F": ((0, 1), (2, 5, 9), (1, 3)),
    "B T H": ((0, 1), (2, 5, 4), (1, 3)),
    "B T V": ((0, 1), (2, 5, 31), (1, 3)),
    "B T C": ((0, 1), (2, 5, 3), (1, 3)),
    "B T N*H": ((0, 1), (2, 5, 12), (1, 3)),
    "B T K*H": ((0, 1), (2, 5, 8), (1, 3)),
    "B S K*H": ((0, 1), (2, 7, 8), (1, 6)),
    "B N T H": ((0, 2), (2, 3, 5, 4), (1, 3)),
    "B K T H": ((0, 2), (2, 2, 5, 4), (1, 3)),
    "B K S H": ((0, 2), (2, 2, 7, 4), (1, 6)),
    "B T S": ((0, 1), (2, 5, 7), (1, 3)),  # a mask: its tokens are the queries, whose keys are compared together
    "I P D": ((0, 1), (2, 9, 6), (1, 8)),
    "I P F": ((0, 1), (2, 9, 5), (1, 8)),
    "I M D": ((0, 1), (2, 4, 6), (1, 2)),
    "B C": ((0,), (3, 4), (2,)),
    "": ((), (), ()),
}


def see(peer: Any, truth: Array, controls: list[Array], valid: Array | None = None, **change: Any) -> Finding:
    given: dict[str, Any] = {"tap": VALUES, "call": 0, "dtype": "float32", "limit": LIMIT} | change
    return examine(given.pop("tap"), given.pop("call"), peer, truth, controls, valid, **given)


def off_by(truth: Array, error: float, *tokens: tuple[int, ...]) -> Array:
    """A float32 copy whose first feature is off by `error`, at all tokens or at some of a (B, T, D) array."""
    out = truth.astype(np.float32)
    for token in tokens or list(np.ndindex(truth.shape[:-1])):
        out[(*token, 0)] += np.float32(error)
    return out


@pytest.fixture
def truth() -> Array:
    """(2, 5, 16) of ones: every token's norm is 4, and 1 + 2⁻¹⁰ is exact in float32."""
    return frozen(np.ones((2, 5, FEW_NUMBERS)))


# Gates


def test_passes_with_figures(truth: Array) -> None:
    found = see(off_by(truth, 2**-10), truth, [off_by(truth, 2**-10)], call=3)
    ratios = dict.fromkeys(("worst", "judged", "median", "p99"), 1.0)
    figures = {**ratios, "limit": 8.0, "peer_error": 2**-12, "control_error": 2**-12}
    assert found == Finding("decoder.norm", 3, "pass", token=(0, 0), tokens=10, **figures)
    assert found.passed


def one(value: float, at: tuple[int, ...] = (1, 2, 3)) -> Any:
    def change(peer: Array) -> Array:
        peer[at] = value
        return peer

    return change


@pytest.mark.parametrize(
    ("status", "change", "detail"),
    [
        ("missing", lambda p: None, r"expected B T D \(2, 5, 16\), the peer shows nothing here"),
        ("shape", lambda p: p[:, :4], r"expected B T D = \(2, 5, 16\), found \(2, 4, 16\)"),
        ("shape", lambda p: p[0], r"found \(5, 16\)"),
        ("shape", lambda p: p[None], r"found \(1, 2, 5, 16\)"),
        ("shape", lambda p: p.swapaxes(0, 1), r"found \(5, 2, 16\)"),
        ("dtype", lambda p: p.astype(np.float16), "expected float32, found float16"),
        ("dtype", lambda p: p.astype(bool), "expected float32, found bool"),
        ("nan", one(math.nan), r"expected finite numbers, found nan at \(1, 2, 3\)"),
        ("nan", one(math.inf), r"found inf at \(1, 2, 3\)"),
        ("nan", one(-math.inf), r"found -inf at \(1, 2, 3\)"),
        ("values", one(1.5), "the worst token is .* times the control's error away from the truth"),
        # a fault hides the later ones: the first gate that fails is named
        ("shape", lambda p: one(math.nan)(p.astype(np.float64))[:1], "found"),
        ("dtype", lambda p: one(math.nan)(p.astype(np.float16)), "found"),
        ("nan", lambda p: one(math.nan)(p + 1), "found"),
    ],
)
def test_gate_fails(status: str, change: Any, detail: str, truth: Array) -> None:
    control = off_by(truth, 2**-20)
    found = see(change(control.copy()), truth, [control])
    assert (found.status, found.passed) == (status, False)
    assert status in FAULTS
    assert re.search(detail, found.detail), found.detail


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_padding_may_be_wrong_but_not_broken(bad: float, truth: Array) -> None:
    """Garbage in a padding row is nobody's business; a NaN there is on its way into somebody's mean."""
    valid = np.ones((2, 5), bool)
    valid[1, 3:] = False
    control = off_by(truth, 2**-20)
    assert see(one(1e30, (1, 4, 0))(control.copy()), truth, [control], valid).passed
    assert see(one(bad, (1, 4, 0))(control.copy()), truth, [control], valid).status == "nan"


@pytest.mark.parametrize(
    ("keys", "status", "detail"),
    [
        ([1, 1, 0, 0], "pass", ""),
        ([1, 0, 0, 0], "mask", "1 keys differ from the rule (0 too many, 1 too few); 1 of 3 queries are wrong"),
        ([0, 1, 1, 1], "mask", "3 keys differ from the rule (2 too many, 1 too few); 1 of 3 queries are wrong"),
    ],
)
def test_mask_gate(keys: list[int], status: str, detail: str) -> None:
    truth = np.broadcast_to([True, True, False, False], (1, 3, 4))
    peer = truth.copy()
    peer[0, 1] = keys
    found = see(peer, truth, [truth], np.ones((1, 3), bool), tap=MASK)
    assert (found.status, found.tokens) == (status, 3)
    assert detail in found.detail
    if status == "mask":
        assert found.token == (0, 1)
        assert math.isnan(found.worst)


def test_mask_must_be_bool_and_ignores_padding_queries() -> None:
    truth, valid = np.ones((1, 3, 4), bool), np.array([[True, True, False]])
    assert see(truth.astype(np.float32), truth, [truth], valid, tap=MASK).status == "dtype"
    assert see(truth.astype(np.uint8), truth, [truth], valid, tap=MASK).status == "dtype"
    peer = truth.copy()
    peer[0, 2] = False
    found = see(peer, truth, [truth], valid, tap=MASK)
    assert (found.status, found.tokens) == ("pass", 2)


# Nothing empty passes


@pytest.mark.parametrize("shape", [(2, 5, 0), (2, 0, 16), (0, 5, 16)])
def test_array_without_elements_never_passes(shape: tuple[int, ...]) -> None:
    found = see(np.zeros(shape, np.float32), np.zeros(shape), [np.zeros(shape, np.float32)])
    assert (found.status, found.detail) == ("missing", "no valid token to compare: an empty comparison is not a pass")


def test_mask_without_keys_never_passes() -> None:
    empty = np.zeros((1, 3, 0), bool)
    assert see(empty, empty, [empty], np.ones((1, 3), bool), tap=MASK).status == "missing"


@pytest.mark.parametrize("tap", [VALUES, MASK])
def test_all_padding_never_passes(tap: Tap, truth: Array) -> None:
    values = truth.astype(bool) if tap.exact else truth
    peer = values if tap.exact else values.astype(np.float32)
    found = see(peer, values, [peer], np.zeros((2, 5), bool), tap=tap)
    assert (found.status, found.tokens) == ("missing", 0)


# Tokens


def test_every_shape_of_the_table_is_here(config: Config) -> None:
    tables = [taps.table(config, task=task, loss=True) for task in ("lm", "sequence", "token")]
    assert {tap.shape for table in tables for tap in table} == set(SHAPES)


@pytest.mark.parametrize("letters", SHAPES)
def test_an_error_is_found_at_its_token(letters: str) -> None:
    axes, shape, token = SHAPES[letters]
    tap = replace(MASK if letters == "B T S" else VALUES, shape=letters)
    assert tap.token_axes == axes
    truth = np.ones(shape, bool if tap.exact else np.float64)
    at = [0] * len(shape)
    for axis, index in zip(axes, token, strict=False):
        at[axis] = index
    peer = truth.copy() if tap.exact else truth.astype(np.float32)
    peer[tuple(at)] = 0
    found = see(peer, truth, [truth if tap.exact else truth.astype(np.float32)], tap=tap)
    assert (found.status, found.token) == ("mask" if tap.exact else "values", token)
    assert found.tokens == math.prod(shape[a] for a in axes)


def test_padding_is_left_out(truth: Array) -> None:
    valid = np.ones((2, 5), bool)
    valid[0, 0] = valid[1, 4] = False
    control = off_by(truth, 2**-10)
    peer = off_by(control.astype(np.float64), 1e6, (0, 0), (1, 4))
    found = see(peer, truth, [control], valid)
    assert (found.status, found.worst, found.tokens) == ("pass", 1.0, 8)
    # the control's padding says nothing either: an error there must not stretch the yardstick
    found = see(off_by(truth, 2**-9), truth, [off_by(control.astype(np.float64), 1e6, (0, 0), (1, 4))], valid)
    assert found.worst == 2.0


def test_worst_token_counts_over_the_padded_array(truth: Array) -> None:
    """Its index is the one in the peer's array, not the one among the valid tokens."""
    valid = np.ones((2, 5), bool)
    valid[0, 2:] = False
    control = off_by(truth, 2**-10)
    found = see(off_by(control.astype(np.float64), 2**-9, (1, 3)), truth, [control], valid)
    assert (found.token, found.worst) == ((1, 3), 3.0)


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


@pytest.mark.parametrize(("dtype", "found"), [("float32", "float64"), ("bfloat16", "float32"), ("float16", "float64")])
def test_more_bits_than_declared_are_judged_as_they_are(dtype: str, found: str) -> None:
    """A tower that keeps float32 in a bfloat16 run is no fault by that; what is wrong with it still is one."""
    truth = np.random.default_rng(3).normal(size=(2, 5, 8))
    control = truth.astype(np.float16).astype(np.float32)
    near = (truth * (1 + 1e-9)).astype(found)
    assert see(near, truth, [control], dtype=dtype).passed
    assert see((truth * 1.5).astype(found), truth, [control], dtype=dtype).status == "values"
    assert see(truth.astype(np.float16), truth, [control], dtype="float32").status == "dtype"


def test_a_mask_is_never_wider() -> None:
    truth = np.ones((1, 3, 3), bool)
    assert see(truth.astype(np.float32), truth, [truth], tap=MASK, dtype="bfloat16").status == "dtype"
