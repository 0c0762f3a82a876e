"""Compares one peer's dump with the reference, tap by tap, as the reference walks through the case.

Under the local anchor, all of our runs go on with the peer's own value after every tap that it shows, except masks.
Under the cumulative anchor they keep their own. The lane judges each tap (`lanes.py`, `half_lane.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.arrays import has_device
from conformance.cases import picked
from conformance.cases.case import Case
from conformance.cases.least import LOG_PROBS, LOGITS
from conformance.cases.plan import validity
from conformance.judge.given_ids import at_ids, whole
from conformance.judge.logit_watch import LogitWatch
from conformance.judge.meeting import UNUSABLE, Array, Ended, Lane, Meeting, Place
from conformance.judge.positions import misread
from conformance.measure.finding import Finding
from conformance.measure.half import Limit
from conformance.measure.match import Signature
from conformance.measure.ratio import wider
from conformance.oracle.run_case import program
from conformance.oracle.side_by_side import Scope, walk
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics
from t5g2ref.taps import Tap

Met = list[tuple[Place, list[Array]]]
"""What truth and controls had, tap by tap."""
PICTURES = 4  # of failing masks that a judgement keeps
SIDE = 64  # rows and columns of such a picture at most


@dataclass
class Found:
    """What one walk found.

    Args:
        findings: in the order of the computation.
        limits, signatures, unclear: see `meeting.Ended`.
        logits: figures of the language model's logits; see `LogitTest.figures`.
        masks: the first failing masks as rows of text, expected and found.
        wider: taps whose values have more bits than the peer's type, each with the type that was found.
    """

    findings: list[Finding]
    limits: list[Limit] = field(default_factory=list)
    signatures: list[Signature] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    logits: dict[str, float] = field(default_factory=dict)
    masks: list[dict[str, Any]] = field(default_factory=list)
    wider: dict[str, str] = field(default_factory=dict)


class Culprit(Exception):
    """Raised at a failing tap where the walk has to stop."""


class Walk:
    """Meets truth and controls at each tap of the plan, and compares the peer's value with them.

    Args:
        plan: the (call, tap) pairs that the peer shows, in order; others are not judged.
        local: whether our runs go on with the peer's values: the local anchor.
        until_culprit: whether to stop at the first tap that fails.
    """

    def __init__(
        self,
        case: Case,
        dump: Dump,
        plan: list[tuple[int, Tap]],
        lane: Lane,
        *,
        local: bool,
        until_culprit: bool = False,
    ) -> None:
        self._case, self._dump, self._lane = case, dump, lane
        self._taps = {(call, tap.name): tap for call, tap in plan}
        self._local, self._until = local, until_culprit
        self._found: dict[Place, Finding] = {}
        self._masks: list[dict[str, Any]] = []
        self._wider: dict[str, str] = {}
        self._rounded: Callable[[Array], Array] = lambda value: value
        self._own = 0  # how many of the walkers are truth and controls
        self._watch: LogitWatch | None = None

    def run(self, ours: list[T5Gemma2], kept: Met | None = None) -> Found:
        """Walk the reference's models (the truth, then the controls) and return what was found.

        Args:
            kept: takes what they had at each tap.
        """
        backend, self._own = self._dump.backend, len(ours)

        def meet(call: int, name: str, values: list[Array]) -> list[Array]:
            if kept is not None:
                kept.append(((call, name), list(values)))
            return self._meet(call, name, values)

        self._rounded = Numerics(self._lane.dtype, backend=backend).array
        if self._local and self._case.task == "lm":
            self._watch = LogitWatch(backend, ours, self._lane.limit)
        try:
            walk(
                self._lane.members(ours),
                program(self._case),
                meet,
                where=lambda call, name: (call, name) in self._taps,
                scope=partial(quiet, backend.scope),
                turns=has_device(backend),
            )
        except Culprit:
            found = [self._found[place] for place in self._taps if place in self._found]
            return Found(found, masks=self._masks, wider=self._wider)
        return self._ended()

    def replayed(self, met: Met) -> Found:
        """What `run` would find where truth and controls had these values."""
        for (call, name), values in met:
            self._own = len(values)
            self._meet(call, name, values)
        return self._ended()

    def _ended(self) -> Found:
        unmet = [place for place in self._taps if place not in self._found]
        if unmet:
            raise RuntimeError(f"the reference never reached {len(unmet)} declared taps, first {unmet[:1]}")
        ended: Ended = self._lane.end({place: self._found[place] for place in self._taps})
        self._found |= ended.changed
        figures: dict[str, float] = {}
        if self._watch is not None:
            self._found |= self._watch.judged(self._found)
            figures = self._watch.figures()
        findings = [self._found[place] for place in self._taps]
        return Found(findings, ended.limits, ended.signatures, ended.unclear, figures, self._masks, self._wider)

    def _meet(self, call: int, name: str, values: list[Array]) -> list[Array]:
        """Judge one tap, and return the values that our runs go on with."""
        tap, peer = self._taps[call, name], self._dump.get(call, name)
        valid = validity(self._case, call, tap, values[0].shape)
        meeting = Meeting(tap, call, peer, values[0], values[1 : self._own], values[self._own :], valid)
        if peer is None and tap.rows == "logits" and name == LOGITS and self._dump.get(call, LOG_PROBS) is not None:
            return self._of_ids(meeting, values)
        finding = self._lane.look(meeting)
        if finding.passed and self._is_read(tap):
            finding = misread(tap, call, self._case, self._dump.whole(call, name), self._dump.backend) or finding
        self._found[call, name] = finding
        if finding.status == "mask" and len(self._masks) < PICTURES and not self._case.picks:
            self._masks.append(picture(finding, *map(self._dump.backend.host, (meeting.truth, peer))))
        if peer is not None and wider(tap, peer, self._lane.dtype):
            self._wider.setdefault(name, str(peer.dtype))
        if (self._until and not finding.passed) or (finding.status in UNUSABLE and self._is_read(tap)):
            raise Culprit
        usable = self._local and finding.status not in UNUSABLE and not tap.exact
        if self._watch is not None:
            self._watch.look(meeting, usable)
        return self._handed_on(meeting, values, usable)

    def _is_read(self, tap: Tap) -> bool:
        """Whether attention needs the peer's value, since our runs have that of the picked tokens alone."""
        return self._case.picks and picked.last_part(tap) in picked.READ

    def _of_ids(self, logits: Meeting, values: list[Array]) -> list[Array]:
        """Judge log-probabilities in place of logits. Nothing goes on with them."""
        meeting = at_ids(logits, self._dump, self._lane.dtype)
        finding = meeting if isinstance(meeting, Finding) else self._lane.look(meeting)
        self._found[logits.place] = finding
        if self._until and not finding.passed:
            raise Culprit
        if self._watch is not None and isinstance(meeting, Meeting) and finding.status not in UNUSABLE:
            if whole(meeting, logits):
                self._watch.look(meeting, usable=True)
            else:
                self._watch.look_at_given(meeting)
        return self._handed_on(logits, values, usable=False)

    def _handed_on(self, meeting: Meeting, values: list[Array], usable: bool) -> list[Array]:
        """The peer's value for every run; where it is not usable, each keeps its own.

        What only walks along (bounds, oracles with defects) then goes on with the truth's.
        """
        if usable:
            peer, xp = self._dump.whole(*meeting.place), self._dump.backend.xp
            types = {value.dtype: xp.asarray(peer, dtype=value.dtype) for value in values}
            given = [types[value.dtype] for value in values]
            if wider(meeting.tap, peer, self._lane.dtype):  # a control rounds what is handed to it
                given[1 : self._own] = map(self._rounded, given[1 : self._own])
            return given
        return [*values[: self._own], *[meeting.truth] * len(meeting.others)]


@contextmanager
def quiet(scope: Scope) -> Iterator[None]:
    """A backend's scope, in which a peer's numbers may overflow what follows: a tap shows it, no warning has to."""
    with scope(), np.errstate(all="ignore"):
        yield


def picture(finding: Finding, expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A failing mask's batch row as text, a line for each query: "x" for a key that may be seen."""
    row, top = finding.token[0], max(0, finding.token[1] - SIDE + 1)
    shown = [
        ["".join(".x"[int(key)] for key in line[:SIDE]) for line in mask[row][top : top + SIDE]]
        for mask in (expected, found)
    ]
    rows = {"expected": shown[0], "found": shown[1], "clipped": max(expected.shape[1:]) > SIDE}
    return {"tap": finding.tap, "call": finding.call, "row": row, "first": top, **rows}
