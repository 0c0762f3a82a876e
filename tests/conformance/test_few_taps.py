"""A peer of few taps: what the report says was exposed really was, for every fault that is injected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from conformance.cases.plan import minimum
from conformance.checkpoints import resolve
from conformance.defects.all import FAULTS
from conformance.defects.catalogue import DEFECTS
from conformance.defects.exposure import hidden
from conformance.defects.injection import Fault
from conformance.judge.judge import judge
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.trial import Bench
from t5g2ref.dtypes import DType

pytestmark = pytest.mark.slow  # minutes in all


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench({target.name: target for target in resolve("tiny", synthetic=False)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.catalogued], ids=lambda fault: fault.key)
def test_what_counts_as_exposed_is_found(bench: Bench, fault: Fault, dtype: str) -> None:
    if fault.lane not in ("float32", dtype):
        pytest.skip(f"this fault is one of {fault.lane}")
    target = bench.target(fault)
    (case,) = (case for case in bench.cases(fault) if case.name == fault.case)
    if case.costly and fault is not next(f for f in FAULTS if f.id == fault.id):
        pytest.skip(f"{case.name} takes long: one variant of each defect")
    if not case.asks(dtype):
        pytest.skip(f"nobody is asked for {case.name} in {dtype}")
    if fault.id in hidden([target.config], [case], few=[dtype]):
        pytest.skip("said not to be exposed")
    peer = FaultyPeer(fault.inject, target.backend, cast(DType, dtype))
    peer.taps = tuple({name for names in minimum(target.config, case) for name in names})
    peer.open(target)
    first = judge(peer, target, case, until_culprit=dtype == "float32", repeat=False)
    assert not first.passed or not judge(peer, target, case, repeat=fault.later).passed


def test_little_is_given_up() -> None:
    """What a peer of few taps is not held to is a short list, and longer in half precision."""
    target = resolve("tiny", synthetic=False)[0]
    case: Any = replace_exposes()
    whole = set(hidden([target.config], [case]))
    given_up = set(hidden([target.config], [case], few=["float32"])) - whole
    half = set(hidden([target.config], [case], few=["bfloat16"])) - whole
    assert given_up == {"D29", "D54", "D65"}
    assert half == given_up | {"D27", "D51", "D52", "D71", "D83", "D84", "D85"}


def replace_exposes() -> Any:
    """A case that exposes the whole catalogue."""
    from conformance.cases import catalogue as cases

    target = resolve("tiny", synthetic=False)[0]
    return replace(cases.build(target.config)[0], exposes=tuple(DEFECTS))
