"""Judges one peer on one case: both anchors, every tap, and who is to blame.

Local: after each judged tap, all of our runs go on with the peer's own value. So a mistake fails in its own row and no
other. Cumulative: every run starts from the ids, and the residual stream is judged. There an error shows that no single
operation has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import cast

from conformance.activations import Dump
from conformance.cases import least, token_words
from conformance.cases.case import Case
from conformance.cases.plan import Shown, judged_part, plan_of
from conformance.errors import CheckpointError
from conformance.judge import name_defect as naming
from conformance.judge.along import Along
from conformance.judge.apart import is_small, told_apart_by
from conformance.judge.evidence import evidence
from conformance.judge.half_lane import HalfLane
from conformance.judge.judgement import Further, Judgement
from conformance.judge.lanes import CumulativeLane, QuantisedLane, SingleLane
from conformance.judge.meeting import Lane
from conformance.judge.operations import Operations
from conformance.judge.positions import check_keys, placed
from conformance.judge.steady import steadied
from conformance.judge.typed_lane import WIDE, TypedLane, kind_at, weights_of
from conformance.judge.walk import Found, Walk, quiet
from conformance.measure.causes import causes, layer_types
from conformance.measure.distance import distances
from conformance.measure.finding import Finding
from conformance.oracle.quantised import Scheme
from conformance.oracle.run_case import models
from conformance.peers.guard import PeerError, call, line
from conformance.peers.protocol import Peer, Skip, optional, scheme_of, shows, wide
from conformance.target import Target
from t5g2ref.config import Config
from t5g2ref.dtypes import HALF, DType
from t5g2ref.taps import Tap

Progress = Callable[[str], None]
Places = list[tuple[int, Tap]]
BESIDE = 3  # causes beside the culprit's for which a name is looked for


@dataclass(frozen=True)
class _Says:
    """What a peer says of itself: which taps it shows, how it is quantised, and which taps are in float32."""

    shown: Shown
    scheme: Scheme | None
    wide: Shown | None


def judge(
    peer: Peer,
    target: Target,
    case: Case,
    progress: Progress = lambda _: None,
    *,
    until_culprit: bool = False,
    repeat: bool = True,
    shared: Along | None = None,
) -> Judgement:
    """Run `case` on an opened peer and on the reference, and compare them on the target's backend.

    A peer that raises is reported and does not pass.

    Args:
        until_culprit: whether to stop at the first failing local tap, without the cumulative anchor.
        repeat: whether a peer that can be asked runs the case twice; see `conformance.judge.steady`.
        shared: of the peers that are judged one after the other; None where nothing is shared.
    """
    case, dtype = case.given(peer.dtype), cast(DType, peer.dtype)
    with Dump(target.backend, judged=judged_part(target.config, case)) as dump:
        began = time.perf_counter()
        progress(f"{case.name}: {peer.name}")
        raised = ""
        try:
            call("", peer.run, case.copied(), dump, passing=(Skip, CheckpointError))
        except Skip as skip:
            return Judgement(peer.name, case.name, skipped=str(skip) or "it does not say why", dtype=dtype)
        except PeerError as error:
            raised = str(error)
        try:
            says = _Says(least.with_pair(shows(peer), case), scheme_of(peer), wide(peer))
            _in_order(target, case, dump)
            check_keys(target.config, case, says.shown)
        except PeerError as error:
            return Judgement(peer.name, case.name, error=raised or str(error), dtype=dtype)
        if raised and not dump.calls:
            return Judgement(peer.name, case.name, error=raised, dtype=dtype)
        ran = time.perf_counter()

        def compared(shows: Dump) -> Judgement:
            with quiet(nullcontext):
                return _compared(peer, says, target, case, shows, dtype, progress, until_culprit, shared)

        result = compared(dump)
        if repeat and not raised and not case.picks and optional(peer, "probed"):  # a long run once, or it takes hours
            progress(f"{case.name}: {peer.name} once more")
            result = steadied(result, peer, target, case, dump, says.shown, compared)
        seconds = {"peer": ran - began, "reference": time.perf_counter() - ran}
        return replace(result, error="; ".join(filter(None, (raised, result.error))), seconds=seconds)


def _in_order(target: Target, case: Case, dump: Dump) -> None:
    """Raises PeerError for calls that the case does not have, and for names that are no tap of their call."""
    plan = plan_of(target.config, case)
    if dump.calls > len(case.calls):
        raise PeerError(f"it made {dump.calls} calls, expected {len(case.calls)}")
    known = {(n, tap.name) for n, tap in plan}
    if least.paired(case):
        known |= {(n, name) for n, tap in known if tap == least.LOGITS for name in least.PAIR}
    for n in range(dump.calls):
        if {least.LOGITS, least.LOG_PROBS} <= set(dump.names(n)):
            raise PeerError(f"it shows logits and {least.LOG_PROBS} in call {n}, expected one of them")
        if strange := [name for name in dump.names(n) if (n, name) not in known]:
            raise PeerError(f"it shows {line(strange[0])} in call {n}, which is no tap of that call; see `list taps`")


def _compared(
    peer: Peer,
    says: _Says,
    target: Target,
    case: Case,
    dump: Dump,
    dtype: DType,
    progress: Progress,
    until_culprit: bool,
    shared: Along | None,
) -> Judgement:
    weights = target.rounded(dtype) if says.wide is None else weights_of(target, dtype, says.wide)
    ours = models(target.config, weights, case, dtype, target.backend, says.scheme)
    plan, compared = plan_of(target.config, case), distances(target.backend)
    seen = [(call, tap) for call, tap in plan if says.shown(tap.name)]
    outside = least.in_words(target.config, case, says.shown)
    lane = _lane(says, target, case, dtype, seen, outside, until_culprit)
    progress(f"{case.name}: local anchor of {peer.name}")
    walked = case.cut()
    local = Walk(walked, dump, seen, lane, local=True, until_culprit=until_culprit).run(ours)
    del lane  # of a picture it holds sums of more than a gigabyte
    along = Found([])
    if not until_culprit and not _from_ids(seen, outside) and not case.picks:  # picked tokens alone lead nowhere
        progress(f"{case.name}: cumulative anchor of {peer.name}")
        spine = [(call, tap) for call, tap in seen if tap.spine]
        walk = Walk(case, dump, spine, CumulativeLane(dtype, compared), local=False)
        alike = shared if says.scheme is None and says.wide is None else None
        along = walk.run(ours) if alike is None else alike.found(walk, ours, target, case.name, dtype, spine)
    found = Judgement(
        peer.name,
        case.name,
        placed(local.findings, target.config, case),
        along.findings,
        error=_too_little(target.config, case, says.shown),
        dtype=dtype,
        exact=_of_reading(peer),
        named=local.signatures,
        logits=local.logits,
        limits=local.limits,
        unclear=local.unclear,
        masks=local.masks,
        wider={name: kind for name, kind in local.wider.items() if says.wide is None or not says.wide(name)},
        scheme=says.scheme.name if says.scheme else "",
        outside=outside,
        evidence=evidence(target, case, dump) if outside and not until_culprit else None,
    )
    found = replace(found, token=_token(found, target.config, case))
    return _explained(found, target, walked, dump, dtype, says.wide)


def _lane(
    says: _Says, target: Target, case: Case, dtype: DType, seen: Places, outside: str, until_culprit: bool
) -> Lane:
    """The lane of the local anchor."""
    compared = distances(target.backend)

    def operations() -> Operations:
        return Operations.of(target.config, case, ((call, tap.name) for call, tap in seen))

    if outside:
        return CumulativeLane(dtype, compared, each=True)
    seen_in_half = operations()
    lane: Lane = SingleLane(dtype, compared, seen_in_half)
    if says.scheme is not None:
        lane = QuantisedLane(dtype, compared)
    elif dtype in HALF:
        lane = HalfLane(dtype, compared, target.config, seen_in_half, at_once=until_culprit)
    if says.wide is None:
        return lane
    return TypedLane(lane, SingleLane(WIDE, compared, operations()), seen_in_half, says.wide)


def _token(found: Judgement, config: Config, case: Case) -> str:
    """The id at the worst token of a culprit that is a tap."""
    culprit = found.culprit
    if culprit is None or culprit in found.exact:
        return ""
    return token_words.said(config, case, culprit.call, culprit.tap, culprit.token)


def _of_reading(peer: Peer) -> list[Finding]:
    """The findings that were made while a dump was read."""
    found = optional(peer, "findings")
    return [f for f in found if isinstance(f, Finding)] if isinstance(found, list) else []


def _explained(found: Judgement, target: Target, case: Case, dump: Dump, dtype: DType, wide: Shown | None) -> Judgement:
    """The judgement, with the culprit's error compared with the patterns of the catalogue."""
    culprit = found.culprit
    if culprit is None or culprit not in found.local:
        return found

    def looked_for(finding: Finding) -> Further:
        where, kind = (target, dtype) if wide is None else kind_at(finding.tap, target, dtype, wide)
        named, fitting = naming.looked_for(where, case, dump, kind, finding)
        return Further(finding, named, told_apart_by(fitting, target, case.name))

    quick = is_small(target) and not case.costly
    further = [looked_for(first) for first in _beside(found, culprit, target.config)] if quick else []
    if any(s.named for s in found.named):
        return replace(found, further=further)
    first = looked_for(culprit)
    return replace(found, named=[*found.named, *first.named], apart=first.apart, further=further)


def _beside(found: Judgement, culprit: Finding, config: Config) -> list[Finding]:
    """The first findings of the causes beside the culprit's, a few at most: looking for a name takes a while."""
    findings = {(f.tap, f.call, f.status): f for f in found.local if not (found.error and f.status == "missing")}
    firsts = [findings[cause.rows[0]] for cause in causes(findings, layer_types(config))]
    return [first for first in firsts if first.status != "missing" and first != culprit][:BESIDE]


def _too_little(config: Config, case: Case, shown: Shown) -> str:
    """Which taps the peer has to show and does not, in words; "" where it shows enough."""
    missing = least.lacking(config, case, shown)
    instead = f", or {' and '.join(least.PAIR)}" if least.LOGITS in missing and least.paired(case) else ""
    if not least.is_outside(config, case, shown):
        instead = f"; show them too, or {least.LOGITS} alone"
    return f"it shows too few taps to be judged; missing: {', '.join(missing[:8])}{instead}" if missing else ""


def _from_ids(seen: Places, outside: str) -> bool:
    """Whether both anchors are one: of a black box, before whose last tap nothing is shown that our runs go on from."""
    return bool(outside) and {tap.name for _, tap in seen} <= set(least.OUTSIDE) - {least.ENCODED}
