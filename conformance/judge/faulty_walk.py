"""Oracles with a fault, walked along a peer's dump: what they have at the culprit, and where they contradict it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.cases.plan import plan_of, validity
from conformance.defects.injection import Injection, Setting
from conformance.defects.rounding import half_of
from conformance.measure import limits
from conformance.measure.finding import Finding
from conformance.target import Target
from t5g2ref.dtypes import HALF, DType
from t5g2ref.numerics import EXACT, Numerics
from t5g2ref.on_demand import extended
from t5g2ref.taps import Tap
from t5g2ref.trace import Trace

Host = np.ndarray[Any, Any]
Seen = Callable[[int, str, Any], None]


class _Reached(Exception):
    """The walk is at the culprit; this is the oracle's value there."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class FaultyWalk:
    """Float64 oracles with a fault, each of which goes on with the peer's value after every tap that it shows.

    Args:
        dump: the peer's, still open.
        culprit: where `value` stops.
    """

    def __init__(self, target: Target, case: Case, dump: Dump, dtype: DType, culprit: Finding) -> None:
        self._dump, self._case, self._place = dump, case, (culprit.call, culprit.tap)
        self._taps = {(call, tap.name): tap for call, tap in plan_of(target.config, case)}
        self._far = limits.NAME_LEFT if dtype in HALF else limits.NAME_LEFT_SINGLE
        backend = target.backend
        with backend.scope():
            rounded = Numerics(dtype, backend=backend).array
            head = {n: rounded(v) for n, v in case.head(target.config.decoder.hidden_size).items()}
        truth = Numerics("float64", EXACT, backend, embed_dtype=dtype)
        self._setting = Setting(target.config, extended(target.rounded(dtype), head), case, truth, half_of(dtype))

    def value(self, injection: Injection) -> Host | None:
        """What the oracle with the fault has at the culprit; None where it does not come so far on this input."""

        def stop(call: int, name: str, value: Any) -> None:
            if (call, name) == self._place:
                raise _Reached(value)

        try:
            self._walk(injection, stop)
        except _Reached as reached:
            return self._setting.nx.backend.host(reached.value)
        except Exception:  # a fault need not fit the peer's values: then it is not the peer's
            return None
        return None

    def contradicted(self, injection: Injection) -> int:
        """At how many of the case's taps the oracle with the fault has not what the peer shows, each judged from the
        peer's own values; one that it does not come to is not explained either."""
        left = {place for place in self._taps if self._dump.get(*place) is not None}

        def compare(call: int, name: str, value: Any) -> None:
            place = call, name
            if place in left and self._agrees(self._taps[place], call, value):
                left.discard(place)

        try:
            self._walk(injection, compare)
        except Exception:  # as above: what comes after it stays unexplained
            return len(left)
        return len(left)

    def _walk(self, injection: Injection, seen: Seen) -> None:
        def anchored(call: int, name: str, value: Any) -> Any:
            seen(call, name, value)
            given = self._dump.get(call, name)
            if given is None or given.shape != value.shape or value.dtype == bool:
                return value
            return self._setting.nx.xp.asarray(self._dump.whole(call, name), dtype=value.dtype)

        with self._setting.nx.backend.scope(), np.errstate(all="ignore"):
            injection.run(self._setting, lambda call: Trace(lambda name, value: anchored(call, name, value)))

    def _agrees(self, tap: Tap, call: int, value: Any) -> bool:
        """Whether every valid token is as near to the peer's as a name demands; bits are equal."""
        host = self._setting.nx.backend.host
        ours, theirs = host(value), host(self._dump.get(call, tap.name))
        if ours.shape != theirs.shape:
            return False
        valid = validity(self._case, call, tap, ours.shape)
        ours, theirs = rows_of(tap, ours, valid), rows_of(tap, theirs, valid)
        if tap.exact:
            return np.array_equal(ours, theirs)
        theirs = theirs.astype(np.float64)
        off = np.linalg.norm(ours.astype(np.float64) - theirs, axis=1)
        return bool((off <= self._far * np.linalg.norm(theirs, axis=1)).all())


def rows_of(tap: Tap, value: Host, valid: Host | None) -> Host:
    """(valid tokens, features)."""
    moved = np.moveaxis(value, tap.token_axes, range(len(tap.token_axes)))
    rows = moved.reshape(int(np.prod(moved.shape[: len(tap.token_axes)])), -1)
    if valid is None:
        return rows
    return rows[valid.reshape(-1)]
