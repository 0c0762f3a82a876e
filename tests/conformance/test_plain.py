"""Dataclasses as plain JSON and back: every bit returns, and what has another form is refused."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from conformance.exchange.plain import PlainError, array_of, decoded, encoded, of_array
from conformance.judge.judgement import Further, Judgement
from conformance.measure.finding import FAILURES, Finding
from conformance.measure.half import Limit
from conformance.measure.match import Signature

TEXT = st.text(st.characters(exclude_categories=("C", "Z")), max_size=8)
FLOATS = st.floats(allow_nan=False)
FINDINGS = st.builds(
    Finding,
    TEXT,
    st.integers(0, 99),
    st.sampled_from(("pass", *FAILURES)),
    worst=FLOATS,
    token=st.lists(st.integers(0, 99), max_size=3).map(tuple),
    detail=TEXT,
    judged=FLOATS,
    median=FLOATS,
    p99=FLOATS,
    peer_error=FLOATS,
    control_error=FLOATS,
    limit=FLOATS,
    tail=FLOATS,
    bias=FLOATS,
    ceiling=FLOATS,
)
SIGNATURES = st.builds(Signature, TEXT, TEXT, FLOATS, FLOATS, FLOATS, TEXT, st.none() | st.integers(0, 9), TEXT)
LIMITS = st.builds(Limit, TEXT, FLOATS, FLOATS, st.integers(0, 9), st.tuples(FLOATS, FLOATS))


def there_and_back(kind: Any, value: Any) -> Any:
    return decoded(kind, json.loads(json.dumps(encoded(value), allow_nan=False)), "it")


@given(FINDINGS)
def test_a_finding_comes_back(finding: Finding) -> None:
    assert there_and_back(Finding, finding) == finding


@given(st.lists(SIGNATURES, max_size=3), st.lists(LIMITS, max_size=3), FINDINGS)
def test_lists_of_others_come_back(named: list[Signature], limits: list[Limit], finding: Finding) -> None:
    assert there_and_back(list[Signature], named) == named
    assert there_and_back(list[Limit], limits) == limits
    assert there_and_back(list[Further], [Further(finding, named, "a")]) == [Further(finding, named, "a")]


@given(st.floats())
def test_every_number_keeps_its_bits(value: float) -> None:
    found = there_and_back(float, value)
    assert math.isnan(found) if math.isnan(value) else struct.pack("d", found) == struct.pack("d", value)


@given(arrays.arrays(st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), arrays.array_shapes(min_side=0)))
def test_arrays_keep_their_bits(value: np.ndarray[Any, Any]) -> None:
    found = array_of(json.loads(json.dumps(of_array(value))), "it")
    assert found.astype(value.dtype).tobytes() == value.tobytes()
    assert found.shape == value.shape


def test_float64_that_float32_holds_takes_half_the_room() -> None:
    assert of_array(np.array([0.5, np.inf]))[0] == "float32"
    assert of_array(np.array([0.1]))[0] == "float64"
    assert of_array(np.array([1e300]))[0] == "float64"


def test_what_no_terminal_shows_is_a_blank() -> None:
    assert there_and_back(Judgement, Judgement("p", "c", error="a\x1b[2J\nb")).error == "a [2J\nb"


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (bool, 1),
        (int, True),
        (int, 1.0),
        (int, 1 << 60),
        (float, True),
        (float, "1"),
        (float, None),
        (str, 1),
        (str, "\x00"),
        (str, "a" * 100_000),
        (list[int], {}),
        (list[int], [1, "a"]),
        (tuple[int, int], [1]),
        (tuple[int, ...], 3),
        (dict[str, int], []),
        (dict[str, int], {"a": "b"}),
        (int | None, "a"),
        (Finding, []),
        (Finding, {"tap": "a"}),
        (Any, [[[[[1]]]]]),
    ],
)
def test_another_form_is_refused(kind: Any, raw: Any) -> None:
    with pytest.raises(PlainError, match=r"^it"):
        decoded(kind, raw, "it")


@pytest.mark.parametrize(
    "raw",
    [
        None,
        ["object", [1], ""],
        ["float32", [1], "AAAA"],
        ["float32", [-1, -1], "AAAAAA=="],
        ["float32", [1 << 40, 1 << 40], ""],
        ["float32", [0] * 9, ""],
        ["float32", [1], "!!!"],
        ["float32", "1", "AAAAAA=="],
    ],
)
def test_an_array_that_does_not_fit_together_is_refused(raw: Any) -> None:
    with pytest.raises(PlainError, match=r"^it"):
        array_of(raw, "it")
