"""Proof that a fault got into a peer: with it something is shown that is not shown without it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.target import Target

Bits = dict[tuple[int, str], tuple[str, tuple[int, ...], bytes]]


def assert_injected(faulty: Any, healthy: Any, target: Target, case: Case) -> None:
    """Fails, as an error of the test and not of the judge, where the fault changes no bit of what the peer shows."""
    without = _bits(healthy, target, case)  # first: a fault may exchange a function of the peer's module for good
    assert _bits(faulty, target, case) != without, (
        f"the fault was not injected: in case {case.name} the peer shows the same with it and without"
    )


def _bits(peer: Any, target: Target, case: Case) -> Bits:
    """Every tap of every call, to the bit, until the peer raised if it did."""
    peer.open(target)
    found: Bits = {}
    with Dump() as dump:
        with suppress(Exception):
            peer.run(case.given(peer.dtype), dump)
        assert dump.calls, "the peer made no call at all"
        for call in range(dump.calls):
            for name in dump.names(call):
                value = np.asarray(dump.get(call, name))
                found[call, name] = str(value.dtype), value.shape, value.tobytes()
    return found
