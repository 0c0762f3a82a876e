"""Quantised engines: right ones of other choices conform beside the declared scheme, wrong ones do not, by layer."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from dumping import case_of
from helpers import Array, generator
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from conformance.__main__ import main
from conformance.checkpoints import resolve
from conformance.defects.all import FAULTS
from conformance.defects.injection import HEALTHY, Injection
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.oracle.quantised import Scheme, SchemeError, parse
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref.dtypes import DType
from t5g2ref.numerics import EAGER

pytestmark = pytest.mark.slow  # minutes in all

INT8, INT4, FP8 = "int8-row", "int4-16", "fp8-row"
SCHEMES = (INT8, INT4, FP8)
QUANTISED = "_proj.weight", "fc1.weight", "fc2.weight"  # of the stacks' layers


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny", synthetic=False)[0]


# An engine, whose quantiser is written here and not there


E4M3 = np.array([2.0**-9 * m for m in range(8)] + [(8 + m) * 2.0 ** (e - 3) for e in range(-6, 9) for m in range(8)])
"""Every number of fp8 e4m3 that is not negative, by its definition; the last one stands for NaN."""


def by_table(value: Array, table: Array) -> Array:
    """Each |value| as the nearest of an ascending table."""
    size, between = np.abs(value), (table[1:] + table[:-1]) / 2
    return np.sign(value) * table[np.searchsorted(between, size)]


def quantised(weight: Array, scheme: str, way: str) -> Array:
    """A weight (out, in) as an engine has it.

    `way`: "right", "asymmetric" (zero points), "clipped" (the largest number is cut by 0.4 of a step); or wrong:
    "rolled" (the scales of the neighbour), "off by one" (a zero point), "truncated".
    """
    kind, group = ("fp8", 0) if scheme == FP8 else ("int8", 0) if scheme == INT8 else ("int4", 16)
    width = weight.shape[1]
    padded = np.pad(weight.astype(np.float64), ((0, 0), (0, -width % (group or width))))
    rows = padded.reshape(len(weight), -1, group or width)
    top = {"int8": 127, "int4": 7, "fp8": 448}[kind]
    if way == "asymmetric":
        low, high = rows.min(axis=2, keepdims=True), rows.max(axis=2, keepdims=True)
        scale = np.where(high > low, high - low, 1) / (2 * top + 1)
        rows = np.round((rows - low) / scale) * scale + low
        return rows.reshape(len(weight), -1)[:, :width].astype(np.float32)
    scale = np.abs(rows).max(axis=2, keepdims=True) / top * (1 - 0.4 / top * (way == "clipped"))
    scale = np.where(scale > 0, scale, 1)
    rounding = {"truncated": np.trunc}.get(way, np.round)
    number = by_table(rows / scale, E4M3[:-1]) if kind == "fp8" else np.clip(rounding(rows / scale), -top, top)
    number = number + (way == "off by one")
    return (number * (np.roll(scale, 1, axis=0) if way == "rolled" else scale)).reshape(len(weight), -1)[:, :width]


class Engine(FaultyPeer):
    """The reference with weights that an engine has rounded, and perhaps a fault beside."""

    def __init__(
        self, target: Target, scheme: str, way: str, dtype: DType = "float32", inject: Injection = HEALTHY
    ) -> None:
        super().__init__(inject, target.backend, dtype, EAGER)
        self.quantised, self._scheme, self._way = scheme, scheme, way

    def open(self, target: Target) -> None:
        super().open(target)
        for name, weight in self._weights.items():
            if ".layers." in name and name.endswith(QUANTISED):
                rounded = quantised(weight, self._scheme, self._way).astype(np.float32)
                self._weights = {**self._weights, name: self._nx.array(rounded)}


def found(peer: Engine, target: Target, case: str) -> Judgement:
    peer.open(target)
    return judge(cast(Any, peer), target, case_of(target, case), repeat=False)


@pytest.mark.parametrize(
    ("case", "dtype"), [("image", "float32"), ("cross-cached", "float32"), ("padded-left-cached", "bfloat16")]
)
@pytest.mark.parametrize("way", ["right", "asymmetric", "clipped"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_right_engine_conforms(scheme: str, way: str, dtype: Any, case: str, target: Target) -> None:
    if way == "asymmetric" and scheme == FP8:
        pytest.skip("a float has no zero point")
    result = found(Engine(target, scheme, way, dtype), target, case)
    assert result.passed, (result.culprit, result.unclear, result.error)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("scheme", "way"),
    [*((scheme, way) for scheme in (INT8, INT4) for way in ("rolled", "off by one", "truncated")), (FP8, "rolled")],
)
def test_a_wrong_quantiser_deviates_layer_by_layer(scheme: str, way: str, dtype: Any, target: Target) -> None:
    result = found(Engine(target, scheme, way, dtype), target, "image")
    assert result.culprit is not None
    assert result.culprit.tap.endswith(("_proj", "fc1", "fc2"))
    bad = {f.tap for f in result.local if not f.passed}
    assert all(tap.endswith(("_proj", "fc1", "fc2")) for tap in bad), "nothing but linear layers is blamed"
    assert len({tap.rsplit(".", 2)[0] for tap in bad}) > 4, "and in every part of the stacks"


@pytest.mark.parametrize("scheme", [INT8, INT4])
@pytest.mark.parametrize("key", ["D09", "D16", "D19 tables", "D24 in k_norm", "D32", "D36 cached", "D39", "D46"])
def test_other_mistakes_are_found_beside_it(key: str, scheme: str, target: Target) -> None:
    fault = next(f for f in FAULTS if f.key.startswith(key) and f.lane == "float32")
    result = found(Engine(target, scheme, "right", inject=fault.inject), target, fault.case)
    assert result.culprit is not None
    assert fault.at(result.culprit.tap)


def test_undeclared_it_deviates(target: Target) -> None:
    """The declaration is what makes it right: full precision is another promise."""
    peer = Engine(target, INT8, "right")
    peer.quantised = ""
    result = found(peer, target, "short")
    assert result.culprit is not None
    assert result.culprit.judged > 80


def test_rounded_inputs(target: Target) -> None:
    """int8 for weights and inputs: an engine that rounds its weights alone is better than that, and conforms."""
    peer = Engine(target, INT8, "right")
    peer.quantised = "int8-row+int8"
    assert found(peer, target, "short").passed


# What the oracle does with a scheme


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_control_is_rounded_as_the_engine(scheme: str) -> None:
    weight = generator("weight").normal(size=(7, 40)).astype(np.float32)
    ours = parse(scheme).weight(np, weight)
    assert np.allclose(ours, quantised(weight, scheme, "right"), rtol=1e-6, atol=0)
    assert (ours != weight).any()


def test_channels_are_the_inputs() -> None:
    weight = generator("channels").normal(size=(7, 40)).astype(np.float32)
    assert np.array_equal(parse("int8-channel").weight(np, weight), parse("int8-row").weight(np, weight.T.copy()).T)


@given(st.floats(-448, 448, width=32))
def test_fp8_is_the_nearest_number_of_the_type(value: float) -> None:
    """Held against all 127 numbers of e4m3, written from its definition."""
    from conformance.oracle.quantised import _on_grid

    (found_,) = _on_grid(np, np.array([value], np.float32), "fp8")
    distance = min(abs(Fraction(float(x)) - abs(Fraction(value))) for x in E4M3[:-1])
    assert abs(Fraction(float(found_)) - Fraction(value)) == distance
    assert abs(found_) in E4M3[:-1]


def test_a_row_of_zeros_stays() -> None:
    assert not parse("int8").weight(np, np.zeros((3, 8), np.float32)).any()


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("int8", Scheme("int8", "row")),
        ("int8-channel", Scheme("int8", "channel")),
        ("int4-32", Scheme("int4", "32")),
        ("fp8-row+fp8", Scheme("fp8", "row", "fp8")),
    ],
)
def test_a_scheme_in_words(text: str, scheme: Scheme) -> None:
    assert parse(text) == scheme
    assert parse(scheme.name) == scheme


@pytest.mark.parametrize("text", ["int3", "int8-", "int4-0", "int8-1000000", "int8+int4", "INT8", "", 8, None, "int8 "])
def test_what_is_no_scheme(text: object) -> None:
    with pytest.raises(SchemeError, match="expected int8, int4 or fp8"):
        parse(text)


PEER = """
from conformance.peers.reference import ReferencePeer

def create(argument, backend):
    peer = ReferencePeer(backend, "float32")
    peer.name, peer.quantised = "engine", {said!r}
    return peer
"""


def test_the_verdict_says_what_it_is_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "engine.py"
    file.write_text(PEER.format(said="int8"))
    options = ["--ckpt", "tiny-even", "--case", "short", "--lane", "exact", "--lane", "fp32", "--no-progress"]
    status = main(["--peer", f"{file}:create", *options])
    told = " ".join(capsys.readouterr().out.split())
    assert status == 0
    assert "declares int8-row: CONFORMS says as good as this quantisation allows" in told
    assert "is quantised: its weights were not compared bit for bit" in told


def test_another_word_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "engine.py"
    file.write_text(PEER.format(said="q4_k"))
    assert main(["--peer", f"{file}:create", "--lane", "fp32", "--no-progress"]) == 2
    assert "its quantised is 'q4_k', expected int8, int4 or fp8" in capsys.readouterr().err
