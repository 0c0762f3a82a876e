"""A defect keeps its name where a peer shows neither masks nor RoPE, and where it shows the least that it may."""

from __future__ import annotations

import sys

import pytest
from processes import ROOT

sys.path.append(str(ROOT / "tools"))

import naming

from conformance.cases.plan import plan_of
from conformance.checkpoints import resolve
from conformance.defects.all import FAULTS
from conformance.selftest.trial import Bench

KEYS = ("D19 tables", "D21", "D23", "D32", "D35", "D42")  # of RoPE's tables and of masks, which nobody shows


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench({target.name: target for target in resolve("tiny", synthetic=False)})


@pytest.mark.parametrize("way", list(naming.WAYS)[1:])
@pytest.mark.parametrize("key", KEYS)
def test_the_name_is_kept(key: str, way: str, bench: Bench) -> None:
    (fault,) = (f for f in FAULTS if f.key == key)
    target = bench.target(fault)
    (case,) = (case for case in bench.cases(fault) if case.name == fault.case)
    assert fault.tap.endswith((".mask", ".cos", ".sin")), "it shows first where this peer shows nothing"
    deviates, names = naming.named(fault, target, case, naming.WAYS[way])
    assert deviates
    assert fault.id in names


def test_the_ways_of_showing() -> None:
    target = resolve("tiny", synthetic=False)[0]
    (case,) = (c for c in Bench({target.name: target}).cases(FAULTS[0]) if c.name == "short")
    every = [tap for _, tap in plan_of(target.config, case)]
    shown = {way: sum(map(wanted, every)) for way, wanted in naming.WAYS.items()}
    assert shown["every tap"] == len(every)
    assert shown["the least"] == 16
    assert 16 < shown["without masks and RoPE"] < len(every)
