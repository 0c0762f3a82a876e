"""The judgement of one peer on one case: the value that reports are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conformance.cases.case import Case
from conformance.judge.evidence import Evidence
from conformance.measure.finding import Finding
from conformance.measure.half import Limit
from conformance.measure.match import Signature


@dataclass(frozen=True)
class Further:
    """A cause beside the culprit's: its first finding, the defects looked for there, and what tells them apart."""

    finding: Finding
    named: list[Signature]
    apart: str = ""


@dataclass(frozen=True)
class Judgement:
    """One peer on one case.

    Args:
        local, cumulative: findings in the order of the computation.
        error: why the peer could not be judged to the end (it raised, say); findings from before it remain.
        seconds: what took how long ("peer", "reference", "exact").
        dtype: the peer's.
        exact: findings about bits: of the exact lane (weights, probes), or made while a dump was read.
        named: defects looked for by their pattern.
        logits: see `LogitTest.figures`.
        limits: of a half-precision lane, the limits of its ratios.
        unclear: kinds of tap where rounding noise could hide anything.
        skipped: why the peer did not run the case, with a link.
        known: a known deviation's reason and link, where one covers what was found; or a known skip's.
        masks: the first failing masks as rows of text, expected and found.
        token: the id at the culprit's worst token, in words; "" where it has none.
        wider: tap → its type, where that has more bits than the peer's. It was judged all the same.
        scheme: how the peer says that it is quantised; "" for not at all.
        repeated: how many taps were compared bit for bit with a second run of the case.
        apart: which case tells several named defects apart, in words; "" for fewer than two.
        further: causes beside the culprit's, under the local anchor.
        unmixed: why the peer refused the inputs between its two runs, which then say nothing of other lengths.
        unsteady: where the second run first differs, in words, and which of the two is wrong.
        outside: what a black box showed, in words; "" for a peer that shows its inside.
        evidence: what a black box showed, for a diagnosis over all cases.
        made: the case that follows from what a peer's `generate` answered; None for every other.
    """

    peer: str
    case: str
    local: list[Finding] = field(default_factory=list)
    cumulative: list[Finding] = field(default_factory=list)
    error: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    dtype: str = "float32"
    exact: list[Finding] = field(default_factory=list)
    named: list[Signature] = field(default_factory=list)
    logits: dict[str, float] = field(default_factory=dict)
    limits: list[Limit] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    skipped: str = ""
    known: str = ""
    masks: list[dict[str, Any]] = field(default_factory=list)
    wider: dict[str, str] = field(default_factory=dict)
    scheme: str = ""
    repeated: int = 0
    unmixed: str = ""
    unsteady: str = ""
    token: str = ""
    outside: str = ""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    made: Case | None = field(default=None, compare=False, repr=False)
    apart: str = ""
    further: list[Further] = field(default_factory=list)

    @property
    def culprit(self) -> Finding | None:
        """The first failing finding: of the exact lane, then local, then cumulative.

        After the peer raised, missing taps come last: they are missing because it raised.
        """
        failing = [f for f in (*self.exact, *self.local, *self.cumulative) if not f.passed]
        shown = [f for f in failing if f.status != "missing"] if self.error else failing
        return next(iter(shown or failing), None)

    def looked_for(self, tap: str, call: int) -> tuple[list[Signature], str]:
        """The defects looked for at a failing tap, and what tells the named ones apart; none where nobody looked."""
        culprit = self.culprit
        if culprit is not None and (culprit.tap, culprit.call) == (tap, call):
            return self.named, self.apart
        more = next((f for f in self.further if (f.finding.tap, f.finding.call) == (tap, call)), None)
        return ([], "") if more is None else (more.named, more.apart)

    @property
    def deviates(self) -> bool:
        """Whether there is a culprit that is not known. A tap that is missing because the peer raised is none."""
        culprit = self.culprit
        return culprit is not None and not self.known and not (self.error and culprit.status == "missing")

    @property
    def passed(self) -> bool:
        judged = bool(self.local or self.exact)
        whole = not self.error and not self.skipped and not self.unclear and not self.partly
        return whole and judged and self.culprit is None

    @property
    def partly(self) -> list[Signature]:
        """Patterns of defects that are there in part. Their cause is not known, so the judgement is no pass."""
        return [signature for signature in self.named if signature.partly]

    def worst(self, anchor: str = "local") -> Finding | None:
        """The finding with the largest ratio that was judged; a failure without a ratio counts as the largest."""
        found: list[Finding] = getattr(self, anchor)
        return max(found, key=lambda f: (not f.passed, f.size), default=None)
