"""Findings of a case that is judged at picked tokens, with the position that each token has in its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from conformance.cases import picked
from conformance.cases.case import Case
from conformance.cases.plan import Shown, plan_of
from conformance.measure.finding import Finding
from conformance.peers.guard import PeerError
from t5g2ref.config import Config


def placed(findings: Sequence[Finding], config: Config, case: Case) -> list[Finding]:
    """The findings, whose tokens were counted among the picked ones, with positions in the whole row.

    A detail names the token as the finding does, first of all numbers in brackets.
    """
    if not case.picks:
        return list(findings)
    taps = {(call, tap.name): tap for call, tap in plan_of(config, case)}
    found = []
    for finding in findings:
        run, _ = case.calls[finding.call]
        tap, at = taps[finding.call, finding.tap], None
        axis = picked.axis(tap)
        if run.picked is not None and axis is not None:
            at = run.picked.at(tap)
        if at is None or not finding.token:
            found.append(finding)
            continue
        place = tap.token_axes.index(axis)
        token = tuple(int(at[i]) if n == place else i for n, i in enumerate(finding.token))
        detail = finding.detail.replace(str(finding.token), str(token), 1)
        found.append(replace(finding, token=token, detail=detail))
    return found


def check_keys(config: Config, case: Case, shown: Shown) -> None:
    """Raises PeerError where picked tokens are judged and the peer does not show what attention reads of the others."""
    names = [tap.name for _, tap in plan_of(config, case) if picked.last_part(tap) in picked.READ] * case.picks
    if lacking := [name for name in dict.fromkeys(names) if not shown(name)]:
        why = "picked tokens are judged from the keys and values of all others, which it does not show"
        raise PeerError(f"{why}; missing: {', '.join(lacking[:8])}")
