"""Oracles with faults: what the reference shows at the end where it has them, in float64 and in the peer's type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conformance.cases.case import Case
from conformance.cases.plan import plan_of, valid_tokens
from conformance.defects.all import FAULTS
from conformance.defects.injection import Fault, Setting, joined
from conformance.defects.rounding import half_of
from conformance.judge.evidence import Evidence, Host, Place, alike
from conformance.oracle.run_case import legal
from conformance.target import Target
from t5g2ref.dtypes import DType
from t5g2ref.numerics import EXACT, SDPA, Numerics, Profile
from t5g2ref.on_demand import extended
from t5g2ref.taps import Tap
from t5g2ref.trace import Trace

Hypothesis = tuple[Fault, ...]
"""Faults that are thought to be in the peer, in the order in which they come into it; none: that it is right."""

Values = Mapping[Place, Host]
_Key = tuple[str, tuple[str, ...], Profile | None]
CONTROLS = 2  # legal ways of doing it that a hypothesis is held against
LATE = 512  # runs with several faults that are kept: the latest


def candidates(dtype: str) -> list[Fault]:
    """Each variant of each catalogued defect once, that a peer in this type can have and an oracle can know."""
    chosen: dict[tuple[str, str], Fault] = {}
    for fault in FAULTS:
        if (
            fault.catalogued
            and fault.named
            and fault.prepared is None
            and not fault.later
            and fault.lane in ("float32", dtype)
        ):
            chosen.setdefault((fault.id, fault.variant), fault)
    return list(chosen.values())


def with_fault(base: Hypothesis, *more: Fault) -> Hypothesis:
    """The hypothesis with more faults in it, in the order of their keys: `Search.ordered` tries the others."""
    return tuple(sorted((*base, *more), key=lambda fault: fault.key))


class Oracles:
    """Runs of the reference with faults. Those with one at most are kept, since many hypotheses ask for them.

    Args:
        cases: by name.
        shown: by case, what the peer showed: ours is brought to the same numbers.
    """

    def __init__(self, target: Target, dtype: DType, cases: Mapping[str, Case], shown: Mapping[str, Evidence]) -> None:
        self.target, self.dtype = target, dtype
        self._cases, self._shown = cases, shown
        self._kept: dict[_Key, Values | None] = {}
        self._late: dict[_Key, Values | None] = {}
        self._places: dict[str, Mapping[Place, Tap]] = {}
        self.runs = 0

    def truth(self, case: str, faults: Hypothesis = ()) -> Values | None:
        """What the float64 oracle has with the faults; None where it comes to no end on this input."""
        return self._values(case, faults, None)

    def control(self, case: str, faults: Hypothesis = ()) -> Values | None:
        """The same in the peer's type."""
        return self._values(case, faults, SDPA)

    def controls(self, case: str, faults: Hypothesis = ()) -> list[Values]:
        """The same in several legal ways: the error of one may be small by luck, where a case shows few numbers."""
        found = [self._values(case, faults, profile) for profile in legal(self.dtype)[:CONTROLS]]
        return [values for values in found if values is not None]

    def _values(self, case: str, faults: Hypothesis, profile: Profile | None) -> Values | None:
        key = case, tuple(fault.key for fault in faults), profile
        kept = self._kept if len(faults) < 2 else self._late
        if key not in kept:
            if len(self._late) >= LATE:
                del self._late[next(iter(self._late))]
            kept[key] = self._run(self._cases[case], faults, profile)
        return kept[key]

    def _run(self, case: Case, faults: Hypothesis, profile: Profile | None) -> Values | None:
        backend = self.target.backend
        shown, found, taps = self._shown[case.name], dict[Place, Host](), self._taps(case)

        def trace_of(call: int) -> Trace:
            def look(name: str, value: Any) -> Any:
                if (place := (call, name)) in taps:
                    rows = valid_tokens(backend.host(value), taps[place], case, call)
                    found[place] = alike(shown, place, rows)
                return value

            return Trace(look)

        self.runs += 1
        try:
            with backend.scope(), np.errstate(all="ignore"):
                joined(*(fault.inject for fault in faults)).run(self._setting(case, profile), trace_of)
        except Exception:  # faults need not fit an input, nor each other: then they are not the peer's
            return None
        return found

    def _taps(self, case: Case) -> Mapping[Place, Tap]:
        """The taps of a case that the peer showed."""
        if case.name not in self._places:
            shown = self._shown[case.name].values
            plan = plan_of(self.target.config, case)
            self._places[case.name] = {(n, tap.name): tap for n, tap in plan if (n, tap.name) in shown}
        return self._places[case.name]

    def _setting(self, case: Case, profile: Profile | None) -> Setting:
        backend, dtype = self.target.backend, self.dtype
        rounded = Numerics(dtype, backend=backend).array
        head = {n: rounded(v) for n, v in case.head(self.target.config.decoder.hidden_size).items()}
        truth = Numerics("float64", EXACT, backend, embed_dtype=dtype)
        nx = truth if profile is None else Numerics(dtype, profile, backend)
        return Setting(self.target.config, extended(self.target.rounded(dtype), head), case, nx, half_of(dtype))


def ids_of(faults: Sequence[Fault]) -> tuple[str, ...]:
    """The defects that the faults are, each once, in order."""
    return tuple(sorted({fault.id for fault in faults}))
