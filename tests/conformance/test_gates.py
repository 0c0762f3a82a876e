"""One tap against truth and control: every gate can fail, nothing empty passes, an error is found at its token."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Array
from one_tap import MASK, SHAPES, VALUES, off_by, see

from conformance.measure.finding import FAILURES, Finding
from t5g2ref import taps
from t5g2ref.config import Config
from t5g2ref.taps import Tap


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
    assert status in FAILURES
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
