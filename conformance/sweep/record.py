"""A comparison that has ended, as plain JSON and back: its judgements with all that a report over many of them needs.

What comes back is held against the work that it is said to be of: other peers, cases, statuses or ids are refused.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from conformance.cases.case import Case
from conformance.cases.forced import forced
from conformance.cases.prompt import Answer
from conformance.defects.catalogue import DEFECTS
from conformance.exchange.plain import Array, PlainError, array_of, decoded, encoded, of_array
from conformance.judge.choices import malformed
from conformance.judge.comparisons import EXACT, Comparison, is_spoilt
from conformance.judge.evidence import MOST_COLUMNS, Evidence
from conformance.judge.judgement import Judgement
from conformance.judge.sitting import Beside
from conformance.measure.finding import FAILURES, Finding
from conformance.measure.match import Signature
from conformance.report.terms import Work
from conformance.sweep.whole import require_whole
from t5g2ref.config import Config

STATUSES = ("pass", *FAILURES)
VERDICTS = ("named", "akin", "partly", "absent", "no power")
LOGITS = (  # what a judgement says of logits, of log-probabilities of given ids, or of neither
    {"kl", "kl_ratio", "tokens", "certified", "flips", "wrong"},
    {"kl", "kl_ratio", "tokens", "far", "control_far", "rms", "control_rms"},
    set[str](),
)
MASK = {"tap": str, "call": int, "row": int, "first": int, "clipped": bool, "expected": list[str], "found": list[str]}
MOST = 1 << 16  # calls, and entries of what a black box showed
BY_HAND = ("evidence", "made")
PLAIN = tuple(field.name for field in fields(Judgement) if field.name not in BY_HAND)


@dataclass(frozen=True)
class Record:
    """A comparison, what was found in it, often one judgement, and what is known beside it."""

    comparison: Comparison
    judgements: Sequence[Judgement]
    beside: Beside


def written(record: Record) -> dict[str, Any]:
    """The record as plain JSON."""
    return {
        "comparison": list(record.comparison),
        "judgements": [_judgement(j) for j in record.judgements],
        "beside": encoded(record.beside),
    }


def _judgement(judgement: Judgement) -> dict[str, Any]:
    found = {name: encoded(getattr(judgement, name)) for name in PLAIN}
    if (seen := judgement.evidence) is not None:
        found["evidence"] = {
            "case": seen.case,
            "deviates": seen.deviates,
            "most": seen.most,
            **{
                name: [[call, tap, of_array(value)] for (call, tap), value in getattr(seen, name).items()]
                for name in ("values", "ids")
            },
        }
    if judgement.made is not None:
        found["made"] = [of_array(np.asarray(run.decoder_input_ids, np.int64)) for run in judgement.made.runs]
    return found


def read(raw: Any, work: Work, where: str) -> Record:
    """The record. Raises PlainError for what no comparison of this work can have found."""
    comparison, judgements, beside = _parts(raw, ("comparison", "judgements", "beside"), where)
    one = Comparison(*decoded(tuple[str, str, str], comparison, f"{where}: comparison"))
    if one not in work.places:
        raise PlainError(f"{where}: {one} is no comparison of this run")
    if not isinstance(judgements, list) or len(judgements) > 2:
        raise PlainError(f"{where}: expected two judgements at most")
    made = [_read(raw, one, work, f"{where}: judgements[{i}]") for i, raw in enumerate(judgements)]
    _whole(made, one, work, where)
    return Record(one, made, beside_of(beside, work, where))


def _whole(made: Sequence[Judgement], one: Comparison, work: Work, where: str) -> None:
    """Raises PlainError unless a case has its judgement. One that is not required, or the exact lane of a peer that
    cannot have it, may have none."""
    own = [j for j in made if not is_spoilt(j)]
    if len(own) > 1:
        raise PlainError(f"{where}: {one} has {len(own)} judgements, expected one")
    if not own and one.case != EXACT and work.terms.required is None:
        raise PlainError(f"{where}: {one} has no judgement, expected one")
    if own and own[0].case != one.case and work.terms.required is None:
        raise PlainError(f"{where}: is of {own[0].case}, expected {one}")


def beside_of(raw: Any, work: Work, where: str) -> Beside:
    """What stands beside judgements, about the peers of this work."""
    beside: Beside = decoded(Beside, raw, f"{where}: beside")
    if any("\n" in note for note in beside.notes):
        raise PlainError(f"{where}: a note has more than one line")
    strange = {*beside.versions, *beside.called} - {peer.name for peer in work.terms.peers}
    if strange:
        raise PlainError(f"{where}: beside is about {sorted(strange)[0]}, which is no peer of this run")
    return beside


def _read(raw: Any, one: Comparison, work: Work, where: str) -> Judgement:
    if not isinstance(raw, dict) or set(raw) - set(BY_HAND) != set(PLAIN):
        raise PlainError(f"{where}: expected the fields of a judgement")
    hints = typing.get_type_hints(Judgement)
    values = {name: decoded(hints[name], raw[name], f"{where}.{name}") for name in PLAIN}
    judgement = Judgement(**values)
    _check(judgement, one, work, where)
    target, case = work.of(one)
    require_whole(judgement, case, target.config, work.terms, where)
    if "evidence" in raw:
        judgement = replace(judgement, evidence=_evidence(raw["evidence"], one, where))
    if "made" in raw:
        judgement = replace(judgement, made=_made(raw["made"], case, target.config, where))
    return judgement


def _check(judgement: Judgement, one: Comparison, work: Work, where: str) -> None:
    """Raises PlainError for what a report would not know what to do with."""
    dtype = next(peer.dtype for peer in work.terms.peers if peer.name == one.peer)
    if (judgement.peer, judgement.dtype) != (one.peer, dtype) or judgement.case not in (one.case, EXACT):
        raise PlainError(f"{where}: is of {judgement.case} of {judgement.peer}, expected {one}")
    findings: list[Finding] = [*judgement.exact, *judgement.local, *judgement.cumulative]
    findings += [further.finding for further in judgement.further]
    if wrong := next((f for f in findings if f.status not in STATUSES or not 0 <= f.call < MOST), None):
        raise PlainError(f"{where}: {wrong.status} in call {wrong.call} is no finding")
    named: list[Signature] = [*judgement.named, *(s for further in judgement.further for s in further.named)]
    if odd := next((s for s in named if s.verdict not in VERDICTS or s.defect not in DEFECTS), None):
        raise PlainError(f"{where}: {odd.verdict} {odd.defect} is no defect of the catalogue")
    if set(judgement.logits) not in LOGITS:
        raise PlainError(f"{where}.logits has {', '.join(judgement.logits)}, which is no set of figures")
    for i, mask in enumerate(judgement.masks):
        _parts(mask, tuple(MASK), f"{where}.masks[{i}]")
        for name, kind in MASK.items():
            decoded(kind, mask[name], f"{where}.masks[{i}].{name}")


def _evidence(raw: Any, one: Comparison, where: str) -> Evidence:
    names = ("case", "deviates", "most", "values", "ids")
    case, deviates, most, values, ids = _parts(raw, names, f"{where}.evidence")
    if case != one.case or not isinstance(deviates, bool) or type(most) is not int or not 0 < most <= MOST_COLUMNS:
        raise PlainError(f"{where}.evidence: expected that of case {one.case}")
    shown = {place: np.asarray(value, np.float64) for place, value in _arrays(values, f"{where}.evidence").items()}
    return Evidence(case, shown, _arrays(ids, f"{where}.evidence"), deviates, most)


def _arrays(raw: Any, where: str) -> dict[tuple[int, str], Array]:
    if not isinstance(raw, list) or len(raw) > MOST:
        raise PlainError(f"{where}: expected a list of arrays")
    found = {}
    for entry in raw:
        if not isinstance(entry, list) or len(entry) != 3:
            raise PlainError(f"{where}: expected [call, tap, array]")
        found[decoded(tuple[int, str], entry[:2], where)] = array_of(entry[2], where)
    return found


def _made(raw: Any, case: Case | None, config: Config, where: str) -> Case:
    """The case that follows from a peer's answers: their ids are enough, the rest is the suite's own."""
    if case is None or not case.prompts or not isinstance(raw, list) or len(raw) != len(case.prompts):
        raise PlainError(f"{where}.made: expected an array of ids for each prompt of the case")
    runs = []
    for prompt, one in zip(case.prompts, raw, strict=True):
        ids = array_of(one, f"{where}.made")
        whole = np.pad(ids, ((0, 0), (0, 1))) if ids.ndim == 2 else ids  # the last one is fed to nobody
        if wrong := malformed(prompt, Answer(whole), config):
            raise PlainError(f"{where}.made: {wrong}")
        runs.append(forced(prompt, whole, config))
    return replace(case, runs=tuple(runs))


def _parts(raw: Any, names: Sequence[str], where: str) -> list[Any]:
    """The values of an object that has these names and no other."""
    if not isinstance(raw, dict) or set(raw) != set(names):
        raise PlainError(f"{where}: expected an object with {', '.join(names)}")
    return [raw[name] for name in names]
