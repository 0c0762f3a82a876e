"""Judges the language model's logits as a distribution, while a case is walked under the local anchor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from conformance.judge.meeting import Array, Meeting, Place
from conformance.measure.finding import Finding
from conformance.measure.logits import GivenTest, LogitTest
from conformance.measure.words import in_words
from t5g2ref.backend import Backend
from t5g2ref.model import T5Gemma2
from t5g2ref.ops import softcap


class LogitWatch:
    """Compares the peer's distribution with those that our runs make of its last hidden states.

    Args:
        ours: truth and controls, which know the final softcap.
        limit: of the lane's ratios; a divergence is quadratic in the error.
    """

    def __init__(self, backend: Backend, ours: list[T5Gemma2], limit: float) -> None:
        self._backend, self._numerics = backend, [model.nx for model in ours]
        self._cap, self._limit = ours[0].config.decoder.final_logit_softcapping, limit**2
        self._before: list[Array] | None = None
        self._test, self._given = LogitTest(), GivenTest()

    def look(self, meeting: Meeting, usable: bool) -> None:
        """Take in one tap.

        Where the peer shows `lm_head`, our own values of it count. The value handed on there is the peer's, which would
        compare the head with itself.
        """
        own = [meeting.truth, *meeting.controls]
        if meeting.tap.name == "lm_head":
            self._before = own
        elif meeting.tap.name == "logits":
            if self._before is not None:
                pairs = zip(self._numerics, self._before, strict=True)
                own = [softcap(nx, value, self._cap) for nx, value in pairs]
            self._before = None
            if usable:
                self._test.add(self._backend, meeting.peer, own[0], own[1:], meeting.valid)

    def look_at_given(self, meeting: Meeting) -> None:
        """Take in log-probabilities of some ids, which truth and controls were brought to."""
        self._given.add(self._backend, meeting.peer, meeting.truth, meeting.controls, meeting.valid)

    def figures(self) -> dict[str, float]:
        """See `LogitTest.figures`; where some ids alone were given, `GivenTest.figures`."""
        return self._test.figures() or self._given.figures()

    def judged(self, found: Mapping[Place, Finding]) -> dict[Place, Finding]:
        """The finding by which the distribution fails the last call's logits; none where they fail already."""
        figures = self.figures()
        place = max((p for p in found if p[1] == "logits"), default=None)
        if not figures or place is None or not found[place].passed:
            return {}
        if not figures["kl_ratio"] <= self._limit:
            detail = f"KL(truth ‖ peer) is {in_words(figures['kl_ratio'])} times the control's"
            return {
                place: replace(
                    found[place], status="values", judged=figures["kl_ratio"], limit=self._limit, detail=detail
                )
            }
        if figures.get("wrong", 0) > 0:
            detail = f"wrong first choice at {figures['wrong']:.0f} positions where the margin certifies the truth's"
            return {place: replace(found[place], status="exact", detail=detail)}
        return {}
