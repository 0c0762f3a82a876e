"""What test vectors see: nearly all faults in float32, no defect of rounding in a half type, nothing in a right port.

The page has the figures.
"""

from __future__ import annotations

import re
from typing import cast

import numpy as np
import pytest
from dumping import case_of, tiny
from processes import ROOT
from vectoring import shown

from conformance.cases import catalogue
from conformance.cases.abilities import TEXT, Required
from conformance.cases.plan import plan_of, required
from conformance.defects.all import FAULTS
from conformance.defects.injection import Fault
from conformance.oracle.expected import Expected, expected_of
from conformance.peers.find import create
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref.dtypes import RUN_IN, DType

PAGE = " ".join((ROOT / "conformance" / "published" / "vectors.md").read_text(encoding="utf-8").split())
BLIND = {
    "D29 encoder": "moves every position of the encoder alike, which no output shows",
    "D54 many": "keeps a key more, and the mask hides it",
    "D65 shifted": "the loss is no vector",
    "D65 pads": "the loss is no vector",
    "X63": "the loss is no vector",
    "X64": "the loss is no vector",
    "D83": "a digit too few in GELU's constant: below the accumulated limit",
    "X82": "the last bits of one cached value",
    "X83": "the last bits of one cross key",
    "X84": "four roundings of one element",
}


def text_faults(lane: DType, targets: dict[str, Target]) -> list[Fault]:
    """The faults of a lane in a text case of a bundled checkpoint as it is, but for the cases that take seconds."""

    def fits(fault: Fault) -> bool:
        if fault.lane != lane or fault.later or fault.beside or fault.target not in targets:
            return False
        target = targets[fault.target]
        case = case_of(target, fault.case) if not fault.case.startswith("image") else None
        plain = fault.given(target.config) == target.config
        return case is not None and plain and not case.costly and Required(None, TEXT).covers(case, ())

    return [fault for fault in FAULTS if fits(fault)]


def first_too_far(fault: Fault, target: Target, vectors: list[Expected]) -> tuple[int, str] | None:
    """Call and tap where a checker would stop; None where all is near enough."""
    found = shown(FaultyPeer(fault.inject, dtype=cast(DType, fault.lane)), target, [fault.case])
    for one in vectors:
        value = found.get(f"{fault.case}/{one.call}/{one.tap.name}")
        if value is None or value.shape != (*one.compared.shape, one.values.shape[1]):
            return one.call, one.tap.name
        off = np.linalg.norm(value[one.compared == 1].astype(np.float64) - one.values, axis=-1)
        if not np.isfinite(value).all() or not (off <= one.allowed).all():
            return one.call, one.tap.name
    return None


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["float32", "bfloat16"])
def test_what_vectors_see(lane: DType) -> None:
    targets = {name: tiny(name) for name in ("tiny", "tiny-even")}
    vectors: dict[tuple[str, str], list[Expected]] = {}
    blind, at_once, faults = [], 0, text_faults(lane, targets)
    for fault in faults:
        target, key = targets[fault.target], (fault.target, fault.case)
        case = case_of(target, fault.case)
        if key not in vectors:
            vectors[key] = expected_of(target, case, lane)[0]
        first = first_too_far(fault, target, vectors[key])
        if first is None:
            blind.append(fault.key)
            continue
        plan = [(call, tap.name, required(tap)) for call, tap in plan_of(target.config, case)]
        begin = next(i for i, (call, name, _) in enumerate(plan) if call == fault.call and fault.at(name))
        shown_there = [(call, name) for call, name, wanted in plan[begin:] if wanted]
        assert first in shown_there, f"{fault.key} at {first}, before it is there"
        at_once += first == shown_there[0]
    if lane == "float32":
        assert sorted(blind) == sorted(BLIND)
        assert f"{len(faults) - len(blind)} of {len(faults)} faults in float32, {at_once} of them" in PAGE
    else:
        assert len(blind) == len(faults)
        assert f"none of the {len(faults)} defects of rounding in bfloat16" in PAGE


def test_the_page_names_what_they_cannot_see() -> None:
    assert {key.split()[0] for key in BLIND if key.startswith("D")} <= set(re.findall(r"\bD\d\d\b", PAGE))


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("dtype", RUN_IN)
def test_transformers_is_near_enough(peer_installed: None, dtype: DType) -> None:
    """At every tap and token far below what is allowed, of which an eighth is what the type forces."""
    worst, judged, target = 0.0, 0, tiny("tiny")
    cases = [case for case in catalogue.build(target.config) if Required(None, TEXT).covers(case, ())]
    names = [case.name for case in cases if not case.costly]
    found = shown(create(f"transformers:sdpa:{dtype}"), target, names)
    for case in names:
        for one in expected_of(target, case_of(target, case), dtype)[0]:
            value = found[f"{case}/{one.call}/{one.tap.name}"][one.compared == 1].astype(np.float64)
            off = np.linalg.norm(value - one.values, axis=-1) / one.allowed
            worst, judged = max(worst, float(off.max())), judged + 1
    assert judged > 400
    assert worst < 3 / 8, f"{8 * worst:.2f} of 8"
