"""The faults themselves: rounding twins against a second writing of them, and injections that leave nothing behind."""

from __future__ import annotations

import math
import re
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
from standin import Device

pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from conformance.activations import Dump
from conformance.cases import catalogue as cases
from conformance.cases import generating, pictured
from conformance.cases.case import Case
from conformance.cases.least import LOGITS
from conformance.cases.picture import PIXELS
from conformance.cases.plan import plan_of
from conformance.checkpoints import resolve
from conformance.defects.all import FAULTS, find
from conformance.defects.catalogue import DEFECTS, SEEN
from conformance.defects.injection import Fault
from conformance.defects.rounding import ROUNDING, erf, grid, twins
from conformance.judge import choices
from conformance.peers.reference import ReferencePeer
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.speaking_peer import SpeakingPeer
from t5g2ref import attention, embedding, ops, rope
from t5g2ref.backend import NUMPY
from t5g2ref.config import Config, Rope
from t5g2ref.dtypes import DType
from t5g2ref.numerics import EXACT, Numerics

pytestmark = pytest.mark.slow  # minutes in all

HALVES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def case_of(fault: Fault, config: Config) -> Case:
    """The case in which the fault has to be found."""
    every = [case for build in (cases.build, generating.build, pictured.build) for case in build(config)]
    (case,) = cases.select(every, [fault.case])
    return case


def oracle(defect: str, half: str) -> Numerics:
    return Numerics("float64", EXACT, NUMPY.with_twins(twins(defect, half)), "bfloat16")


def narrow(x: Any, half: str) -> Any:
    """By way of float32, which is near enough to one rounding for numbers drawn at random."""
    return np.asarray(x).astype(np.float32).astype(HALVES[half]).astype(np.float64)


@pytest.fixture
def drawn() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    return rng.normal(0, 2, (2, 5, 16)), np.float32(rng.normal(0, 0.5, 16))


def test_erf_to_the_last_digits() -> None:
    x = np.concatenate([np.linspace(-7, 7, 20001), [0.0, np.inf, -np.inf, 1e-300]])
    assert np.abs(erf(np, x) - [math.erf(v) for v in x]).max() < 1e-12
    assert np.isnan(erf(np, np.array([np.nan]))).all()


@pytest.mark.parametrize("half", HALVES)
def test_norms_round_what_they_say(half: str, drawn: tuple[Any, Any]) -> None:
    x, w = drawn
    scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3)
    variance = narrow(narrow(x * x, half).mean(-1, keepdims=True), half)
    expected = {
        "D11": x * scale * narrow(1.0 + w.astype(np.float64), half),
        "D12": narrow(x * scale, half) * (1.0 + w.astype(np.float64)),
        "D13": x / np.sqrt(variance + 1e-3) * (1.0 + w.astype(np.float64)),
    }
    for defect, value in expected.items():
        np.testing.assert_allclose(ops.rms_norm(oracle(defect, half), x, w, 1e-3), value, rtol=1e-14)
        inside = ops.add_norm(oracle(defect, half), x, x, w, 1e-3, "norm")  # the fused operation has the defect too
        np.testing.assert_allclose(inside, x + value, rtol=1e-12)


def test_embedding_scale_is_not_rounded() -> None:
    rows = SimpleNamespace(weight=np.float32([[1, 2, 3], [4, 5, 6]]), eoi_embedding=np.float32([7, 8, 9]))
    nx = Numerics("bfloat16", backend=NUMPY.with_twins(twins("D02", "bfloat16")))
    found = embedding.embed(oracle("D02", "bfloat16"), rows, np.array([[0, 1]]), 1)
    np.testing.assert_array_equal(found, [[rows.weight[0].astype(np.float64) * math.sqrt(3), rows.eoi_embedding]])
    np.testing.assert_array_equal(embedding.embed(nx, rows, np.array([[0]]), 1), narrow(found[:, :1], "bfloat16"))


@pytest.mark.parametrize("half", HALVES)
def test_angles_are_narrow(half: str) -> None:
    positions = np.arange(300)[None]
    cos, sin = rope.tables(oracle("D27", half), Rope(1e4), 8, positions)
    frequencies = narrow(1e4 ** (-np.arange(4) / 4), half)
    angles = narrow(narrow(positions, half)[..., None] * frequencies, half)
    np.testing.assert_allclose(cos, np.cos(np.concatenate([angles, angles], -1)), rtol=0, atol=1e-14)
    np.testing.assert_allclose(sin, np.sin(np.concatenate([angles, angles], -1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("half", HALVES)
def test_softmax_is_narrow_at_every_step(half: str) -> None:
    rng = np.random.default_rng(5)
    q, k = rng.normal(size=(1, 1, 3, 4)), rng.normal(size=(1, 1, 6, 4))
    allowed = np.array([[[[[True] * 6, [True] * 4 + [False] * 2, [False] * 6]]]])
    found = attention.attention_weights(oracle("D51", half), q, k, 0.5, None, allowed, (1, 1, 1, 3, 6))
    scores = narrow(narrow(q @ k.swapaxes(-1, -2), half) * 0.5, half)[0, 0]
    for row, seen in ((0, 6), (1, 4)):
        powers = narrow(np.exp(narrow(scores[row, :seen] - scores[row, :seen].max(), half)), half)
        expected = narrow(powers / narrow(powers.sum(), half), half)
        np.testing.assert_array_equal(found[0, 0, 0, row], [*expected, *[0] * (6 - seen)])
    assert not found[0, 0, 0, 2].any()


def test_erf_gelu() -> None:
    x = np.linspace(-6, 6, 501)
    expected = [v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(ops.gelu_tanh(oracle("D52", "bfloat16"), x), expected, atol=1e-14)
    gated = ops.gated_gelu(oracle("D52", "bfloat16"), x, 2 * x)
    np.testing.assert_allclose(gated, 2 * x * expected, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_grid_keeps_the_dtype(dtype: Any) -> None:
    x = dtype([1 + 2**-9, 3.0, 1e-3])
    rounded = grid(Numerics("float64"), x, "bfloat16")
    assert rounded.dtype == dtype
    np.testing.assert_array_equal(rounded, grid(Numerics("float64"), rounded, "bfloat16"))
    assert rounded[0] == 1


def test_what_rounds_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="half is 'float32'"):
        twins("D11", "float32")
    assert set(ROUNDING) <= set(DEFECTS)


# The catalogue


def test_every_defect_is_injected() -> None:
    assert {f.id for f in FAULTS if f.catalogued} == set(DEFECTS)


def test_more_than_the_catalogue() -> None:
    assert len({f.id for f in FAULTS if not f.catalogued}) >= 25


def test_what_was_seen_is_a_thread() -> None:
    assert set(SEEN) <= set(DEFECTS)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread) for thread in SEEN.values())


def test_keys_are_unique_and_found() -> None:
    assert len({f.key for f in FAULTS}) == len(FAULTS)
    assert all(fault in find([fault.key.lower()]) for fault in FAULTS)
    assert {f.id for f in find(["d05"])} == {"D05"}


@pytest.fixture(scope="module")
def targets() -> dict[str, Any]:
    return {target.name: target for target in resolve("tiny", synthetic=False)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.key)
def test_expected_tap_is_declared(fault: Fault, targets: dict[str, Any]) -> None:
    config = targets.get(fault.target, targets["tiny"]).config
    case = case_of(fault, config)
    if fault.prepared is not None:
        assert (fault.tap, case.name) == (PIXELS, pictured.NAME)
        return
    if fault.spoken:
        assert fault.tap in (LOGITS, *choices.JUDGED)
        return
    assert any(call == fault.call and fnmatchcase(tap.name, fault.tap) for call, tap in plan_of(config, case))


def shown(peer: ReferencePeer, target: Any, name: str) -> dict[tuple[int, str], Any]:
    peer.open(target)
    (case,) = cases.select(cases.build(target.config), [name])
    with Dump() as dump:
        peer.run(case, dump)
        return {(call, tap): dump.get(call, tap) for call in range(dump.calls) for tap in dump.names(call)}


def same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_without_a_fault_it_is_the_reference(targets: dict[str, Any]) -> None:
    healthy = shown(ReferencePeer(NUMPY, "float32"), targets["tiny"], "cross-cached")
    assert same(healthy, shown(FaultyPeer(), targets["tiny"], "cross-cached"))


@pytest.mark.parametrize(
    "key", ["D01", "D09", "D24 after k_norm", "D25", "D28 slips", "D54 few", "D68", "D75 slots", "X10", "X22", "X48"]
)
def test_nothing_of_a_fault_stays(key: str, targets: dict[str, Any]) -> None:
    (fault,) = (f for f in FAULTS if f.key == key)
    healthy = shown(FaultyPeer(), targets["tiny"], "decoder-split" if "D54" in key else "cross-cached")
    faulty = FaultyPeer(fault.inject)
    first, second = (shown(faulty, targets["tiny"], "decoder-split" if "D54" in key else "cross-cached") for _ in "12")
    assert not same(healthy, first)
    assert same(first, second)
    assert same(healthy, shown(FaultyPeer(), targets["tiny"], "decoder-split" if "D54" in key else "cross-cached"))
    assert not NUMPY.twins


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.key)
@pytest.mark.usefixtures("devices")
def test_faults_run_where_the_arrays_are(fault: Fault) -> None:
    """On a device library's arrays none of them falls back on NumPy's."""
    backend = Device()
    target = resolve("tiny", synthetic=False, backend=backend)[0]
    case = case_of(fault, target.config)
    if fault.prepared is not None:
        return  # a processor works on the host
    if fault.spoken:
        speaking = SpeakingPeer(fault, backend)
        speaking.open(target)
        assert all(speaking.generate(prompt).ids.size for prompt in case.prompts)
        return
    peer = FaultyPeer(fault.inject, backend, cast(DType, fault.lane))
    peer.open(target)
    with Dump(backend) as dump:
        peer.run(case, dump)
        assert dump.calls
