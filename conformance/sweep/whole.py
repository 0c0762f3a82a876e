"""Whether what a record says of a case is all that the case asks: a judgement that lost its worst row must not pass."""

from __future__ import annotations

from conformance.cases import least
from conformance.cases.case import Case
from conformance.cases.picture import PIXELS
from conformance.cases.plan import plan_of
from conformance.exchange.plain import PlainError
from conformance.judge.judgement import Judgement
from conformance.report.terms import Asked, Terms
from t5g2ref.config import Config


def require_whole(judgement: Judgement, case: Case | None, config: Config, terms: Terms, where: str) -> None:
    """Raises PlainError for findings that no run of the case leaves, and for a pass by numbers that no pass has."""
    if judgement.known:
        raise PlainError(f"{where}: is known already, which only a report says")
    for f in [*judgement.local, *judgement.cumulative]:
        if f.passed and not (f.judged <= f.limit and f.tokens > 0):
            raise PlainError(f"{where}: {f.tap} passes with {f.judged} of {f.limit} in {f.tokens} tokens")
    if judgement.passed and not (judgement.local or judgement.exact):
        raise PlainError(f"{where}: passes case {judgement.case} without a finding")
    if case is not None and case.pictures:
        _of_files(judgement, case, where)
    if case is None or case.prompts or case.pictures:
        return
    if not (judgement.local or judgement.cumulative):
        if not (judgement.error or judgement.skipped):
            raise PlainError(f"{where}: has no finding in case {judgement.case}")
        return
    _in_plan(judgement, case, config, where)
    peer = next(peer for peer in terms.peers if peer.name == judgement.peer)
    _repeated(judgement, peer, terms.repeat and not case.picks, where)


def _of_files(judgement: Judgement, case: Case, where: str) -> None:
    """One finding for each picture file, unless it broke off."""
    found, wanted = [(f.call, f.tap) for f in judgement.exact], [(n, PIXELS) for n in range(len(case.pictures))]
    if found != wanted and not (judgement.error or judgement.skipped):
        raise PlainError(f"{where}: case {judgement.case} has {len(found)} pictures, expected {len(wanted)}")
    if judgement.local or judgement.cumulative:
        raise PlainError(f"{where}: case {judgement.case} has findings of no picture")


def _in_plan(judgement: Judgement, case: Case, config: Config, where: str) -> None:
    """A peer that shows a tap shows it in each call that has it; of those, the spine is judged from the ids too."""
    names = {f.tap for f in judgement.local}
    plan = plan_of(config, case)
    known = {(n, tap.name) for n, tap in plan}
    rows = [*judgement.local, *judgement.cumulative]
    if strange := next((f for f in rows if (f.call, f.tap) not in known), None):
        raise PlainError(f"{where}: {strange.tap} in call {strange.call} is no tap of case {judgement.case}")
    shown = [(n, tap.name) for n, tap in plan if tap.name in names]
    spine = [(n, tap.name) for n, tap in plan if tap.name in names and tap.spine and not case.picks]
    from_ids = names <= set(least.OUTSIDE) - {least.ENCODED}
    for anchor, wanted in (("local", shown), ("cumulative", [] if from_ids else spine)):
        found = [(f.call, f.tap) for f in getattr(judgement, anchor)]
        if found != wanted:
            lost = next((place for place in wanted if place not in found), wanted[:1] or found[:1])
            raise PlainError(f"{where}: {anchor} has {len(found)} findings, expected {len(wanted)}: {lost}")
    if not judgement.error and (lacking := least.lacking(config, case, names.__contains__)):
        raise PlainError(f"{where}: has no finding at {lacking[0]}, which every peer has to show")


def _repeated(judgement: Judgement, peer: Asked, repeat: bool, where: str) -> None:
    """A case that was run twice was compared with itself at each tap of the local anchor."""
    twice = repeat and peer.probed and not judgement.error
    if (twice or judgement.repeated) and judgement.repeated != len(judgement.local):
        found = f"{len(judgement.local)} findings, and {judgement.repeated} taps that were compared twice"
        raise PlainError(f"{where}: case {judgement.case} has {found}")
