"""Which case of the catalogue tells two defects apart that are one and the same where the peer fails.

Both are run through each case, from the ids, in float64. The first case in which they differ is the one. A large
checkpoint would take too long: then both bundled ones have to say so, whose cases have the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from conformance.cases import catalogue as cases
from conformance.cases.case import Case
from conformance.cases.plan import plan_of, valid_tokens
from conformance.checkpoints import resolve
from conformance.defects.injection import Fault, Setting
from conformance.measure import limits
from conformance.target import Target
from t5g2ref.numerics import Numerics
from t5g2ref.on_demand import extended
from t5g2ref.params import count
from t5g2ref.trace import Trace

LARGE = 5_000_000  # numbers in the weights
MOST = 3  # defects that are told apart, two by two

Host = np.ndarray[Any, Any]
Seen = dict[tuple[int, str], Host]


def is_small(target: Target) -> bool:
    """Whether a walk through a case takes a few hundredths of a second."""
    return count(target.config) <= LARGE


def told_apart_by(fitting: Mapping[str, Sequence[Fault]], target: Target, case: str) -> str:
    """A sentence for what nothing told apart; "" for fewer than two defects.

    Args:
        fitting: defect id → its variants that fit.
        target: the peer's checkpoint.
        case: the one that was judged, and cannot tell.
    """
    if len(fitting) < 2:
        return ""
    on = [target] if is_small(target) and target.backend.name == "numpy" else resolve("tiny", synthetic=False)
    names = [c.name for c in cases.build(target.config) if c.name != case and not c.costly]
    pairs = list(combinations(list(fitting)[:MOST], 2))
    found = {(a, b): _telling([fitting[a], fitting[b]], names, on) for a, b in pairs}
    return "; ".join(f"{f'case {case}' if case else 'no case'} tells {a} from {b}" for (a, b), case in found.items())


def _telling(variants: Sequence[Sequence[Fault]], names: Iterable[str], on: Sequence[Target]) -> str:
    """The first case in which they differ on every checkpoint; "" where there is none."""
    return next((name for name in names if all(_apart(variants, name, target) for target in on)), "")


def _apart(variants: Sequence[Sequence[Fault]], name: str, target: Target) -> bool:
    """Whether no variant of the one defect is one of the other, in the case of this name."""
    case = next((c for c in cases.build(target.config) if c.name == name), None)
    if case is None:
        return False
    one, other = ([_seen(fault, case, target) for fault in faults] for faults in variants)
    return all(_differ(a, b) for a in one for b in other)


def _seen(fault: Fault, case: Case, target: Target) -> Seen:
    """What the oracle with the fault shows in a case, the tokens that count; up to where it raises, if it does."""
    truth = Numerics("float64", embed_dtype="float32")
    taps = {(call, tap.name): tap for call, tap in plan_of(target.config, case)}
    seen: Seen = {}

    def trace_of(call: int) -> Trace:
        def keep(name: str, value: Any) -> Any:
            if (call, name) in taps:
                seen[call, name] = valid_tokens(np.asarray(value), taps[call, name], case, call)
            return value

        return Trace(keep)

    weights = extended(target.weights, case.head(target.config.decoder.hidden_size))
    try:
        with np.errstate(all="ignore"):
            fault.inject.run(Setting(target.config, weights, case, truth), trace_of)
    except Exception:  # a fault need not fit the case: what it showed before counts
        return seen
    return seen


def _differ(one: Seen, other: Seen) -> bool:
    """Whether a tap differs by more than a name leaves open in float32; or is shown by one alone."""
    if one.keys() != other.keys():
        return True
    return any(not _same(value, other[place]) for place, value in one.items())


def _same(one: Host, other: Host) -> bool:
    if one.shape != other.shape or one.dtype == bool:
        return np.array_equal(one, other)
    off = float(np.linalg.norm((one - other).reshape(-1)))
    return off <= limits.NAME_LEFT_SINGLE * float(np.linalg.norm(one.reshape(-1)))
