"""Everything that one command found, and the verdict that follows from it."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conformance.judge.hypotheses.diagnosis import Diagnosis
from conformance.judge.judgement import Judgement
from conformance.measure.causes import LayerTypes
from conformance.measure.finding import Finding
from conformance.peers.guard import line
from t5g2ref import __version__
from t5g2ref.backend import NUMPY, Backend

MOST = 8  # cases that the last line names
Place = tuple[str, Judgement, Finding]


@dataclass(frozen=True)
class Result:
    """Everything that one command found.

    Args:
        judgements: (target name, judgement) in the order of the run.
        exposes: case name → defect ids.
        hidden: defect id → why this run could not have seen it.
        versions: of the peers.
        selected, available: how many cases were chosen (0 for the exact lane alone) and how many there are, on all
            targets together.
        seconds, peak_bytes: of the whole command.
        share: which part of a run this is, in words; "" for a whole one.
        interrupted: how far the run came before someone stopped it; "" for a whole run.
        titles: case name → what it is.
        peers: peer name → how it was asked for.
        known: the entries of the file of known deviations, each with its state.
        notes: caveats printed beside the verdict.
        command: the command line, for whoever reproduces the report.
        diagnoses: of black boxes that deviate.
        covers: what the verdict covers, where that is not every case from the inside.
        layers: target name → its stacks' layer types.
    """

    judgements: list[tuple[str, Judgement]]
    exposes: dict[str, tuple[str, ...]]
    hidden: dict[str, str]
    versions: dict[str, str]
    selected: int
    available: int
    seconds: float = 0.0
    peak_bytes: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    interrupted: str = ""
    titles: dict[str, str] = field(default_factory=dict)
    known: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    peers: dict[str, str] = field(default_factory=dict)
    command: str = ""
    covers: str = ""
    diagnoses: list[Diagnosis] = field(default_factory=list)
    layers: dict[str, LayerTypes] = field(default_factory=dict)
    share: str = ""

    @property
    def verdict(self) -> str:
        """CONFORMS, DEVIATES or INCOMPLETE.

        INCOMPLETE: a peer could not be judged on all that was asked, or on nothing but what it is known to skip, or a
        known deviation is no longer seen.
        """
        if any(j.deviates for _, j in self.judgements):
            return "DEVIATES"
        judged = all(j.passed or j.known for _, j in self.judgements)
        if self.interrupted or not self.judgements or not judged or self._stale or self._idle:
            return "INCOMPLETE"
        return "CONFORMS"

    @property
    def _idle(self) -> list[str]:
        """Peers that were judged on nothing at all."""
        judged = {j.peer for _, j in self.judgements if not j.skipped and not (j.error and j.known)}
        return [peer for peer in dict.fromkeys(j.peer for _, j in self.judgements) if peer not in judged]

    @property
    def _stale(self) -> list[dict[str, Any]]:
        return [entry for entry in self.known if entry["state"] == "unexpected pass"]

    @property
    def dtypes(self) -> list[str]:
        """The types that peers were judged in."""
        return list(dict.fromkeys(j.dtype for _, j in self.judgements if j.local))

    @property
    def status(self) -> int:
        return {"CONFORMS": 0, "DEVIATES": 1, "INCOMPLETE": 3}[self.verdict]

    def worst(self, anchor: str = "local", dtype: str | None = None) -> Place | None:
        """The place with the largest ratio, over all peers or over those in one type."""
        judged = [(t, j) for t, j in self.judgements if dtype in (None, j.dtype)]
        places = [(t, j, w) for t, j in judged if (w := j.worst(anchor)) is not None]
        return max(places, key=lambda p: (not p[2].passed, p[2].size), default=None)

    def last_line(self) -> str:
        """The fixed last line of the output."""
        scope = "" if self.selected == self.available else f" (on {self.selected} of {self.available} cases)"
        scope = scope if self.selected else " (exact lane alone)"
        if self.covers:
            scope = f" on {self.covers}{'' if 'not covered' in self.covers else scope}"
        scope += f" ({self.share})" if self.share else ""
        excused = len({j.known for _, j in self.judgements if j.known and not j.skipped and not j.error})
        known = f" with {excused} known deviation{'s' * (excused > 1)}" if excused else ""
        return line(f"VERDICT: {self.verdict}{known}{self._left_out()}{scope}{self._blame()}")

    def _left_out(self) -> str:
        """Cases that were not judged, where that is known: a verdict beside them must not hide it."""
        names = list(dict.fromkeys(j.case for _, j in self.judgements if (j.skipped or j.error) and j.known))
        more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
        return f"; known and not judged: {', '.join(names[:MOST])}{more}" if names else ""

    def _diagnosed(self, target: str, peer: str) -> str:
        """The defects that a black box has, where hypotheses leave no choice: ", D32 and D39"."""
        sets = [d.found for d in self.diagnoses if (d.target, d.peer) == (target, peer)]
        return f", {' and '.join(sets[0][0])}" if sets and len(sets[0]) == 1 else ""

    def _blame(self) -> str:
        verdict = self.verdict
        if verdict == "INCOMPLETE" and self.interrupted:
            return f" - interrupted after {self.interrupted}"
        for target, judgement in self.judgements:
            culprit = judgement.culprit
            if verdict == "DEVIATES" and judgement.deviates and culprit is not None:
                named = "".join(f", {s.defect}" for s in judgement.named if s.named)
                named += self._diagnosed(target, judgement.peer)
                return f" at {culprit.tap} ({culprit.status}{named}; {judgement.peer}, case {judgement.case}, {target})"
            if verdict == "INCOMPLETE" and not judgement.passed and not judgement.known:
                return f" - {_unjudged(judgement)}"
        if verdict == "INCOMPLETE" and not self.judgements:
            return " - nothing was judged: no lane that was asked for has such a case"
        if verdict == "INCOMPLETE" and self._idle:
            return f" - {self._idle[0]} was judged on nothing"
        stale = self._stale[:1]
        what = "skip" if stale and stale[0]["status"] == "skipped" else "deviation"
        return "".join(f" - a known {what} is no longer seen: {entry['reason']}" for entry in stale)


def _unjudged(judgement: Judgement) -> str:
    """Why a judgement that does not deviate is no pass either."""
    if judgement.skipped:
        return f"{judgement.peer} skips case {judgement.case}: {judgement.skipped}"
    if judgement.error:
        return f"{judgement.peer} could not be judged on case {judgement.case}"
    if judgement.partly:
        part = judgement.partly[0].part
        return f"{part}: no proof, and no pass ({judgement.peer}, {judgement.case})"
    if judgement.unclear:
        return f"rounding noise could hide anything at {judgement.unclear[0]} ({judgement.peer}, {judgement.case})"
    return f"nothing of {judgement.peer} was compared in case {judgement.case}"


def environment(backend: Backend = NUMPY) -> dict[str, str]:
    """The judge's versions, and its backend and device where that is not NumPy."""
    found = {"t5g2ref": __version__, "numpy": np.__version__, "python": platform.python_version()}
    return found if backend is NUMPY else found | {"backend": backend.name} | backend.describe()
