"""Findings of a case that is judged at picked tokens, with the position that each token has in its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from conformance.cases import picked
from conformance.cases.case import Case
from conformance.cases.picked import Picked
from conformance.cases.plan import Shown, plan_of
from conformance.measure.distance import Distances
from conformance.measure.finding import Finding
from conformance.measure.ratio import not_finite
from conformance.peers.guard import PeerError
from t5g2ref.backend import Backend
from t5g2ref.config import Config
from t5g2ref.taps import Tap


def placed(findings: Sequence[Finding], config: Config, case: Case) -> list[Finding]:
    """The findings, whose tokens were counted among the picked ones, with positions in the whole row."""
    if not case.picks:
        return list(findings)
    taps = {(call, tap.name): tap for call, tap in plan_of(config, case)}
    return [_placed(f, taps[f.call, f.tap], case.calls[f.call][0].picked) for f in findings]


def _placed(finding: Finding, tap: Tap, chosen: Picked | None) -> Finding:
    """The finding with its token's position. A detail names the token as the finding does, first of all."""
    axis = picked.axis(tap)
    at = None if chosen is None else chosen.at(tap)
    if at is None or axis is None or not finding.token:
        return finding
    place = tap.token_axes.index(axis)
    token = tuple(int(at[i]) if n == place else i for n, i in enumerate(finding.token))
    return replace(finding, token=token, detail=finding.detail.replace(str(finding.token), str(token), 1))


def check_keys(config: Config, case: Case, shown: Shown) -> None:
    """Raises PeerError where picked tokens are judged and the peer does not show what attention reads of the others."""
    names = [tap.name for _, tap in plan_of(config, case) if picked.last_part(tap) in picked.READ] * case.picks
    if lacking := [name for name in dict.fromkeys(names) if not shown(name)]:
        why = "picked tokens are judged from the keys and values of all others, which it does not show"
        raise PeerError(f"{why}; missing: {', '.join(lacking[:8])}")


def misread(tap: Tap, call: int, case: Case, whole: Any, backend: Backend) -> Finding | None:
    """The finding of a value that attention cannot be computed from, though its picked tokens may be right: one that
    has not every token, or is not finite at one of the others. None for any other tap.

    Args:
        case: cut, as our own runs walk it.
    """
    run, _ = case.calls[call]
    at = picked.axis(tap)
    if run.cut is None or whole is None or at is None or picked.last_part(tap) not in picked.READ:
        return None
    length = run.cut[tap.rows != "encoder"]
    if whole.ndim != len(tap.shape.split()) or whole.shape[at] != length:
        found = f"expected {tap.shape} of all {length} tokens, which attention reads, found {tuple(whole.shape)}"
        return Finding(tap.name, call, "shape", detail=found)
    return not_finite(tap, call, whole, Distances(backend))
