"""Truth and controls under the cumulative anchor: they go on with their own values, so every peer in a type meets the
same ones. Peers that are judged on a case one after the other share them."""

from __future__ import annotations

from typing import Any

from conformance.judge.walk import Found, Met, Walk
from conformance.target import Target
from t5g2ref.model import T5Gemma2
from t5g2ref.taps import Tap


class Along:
    """What truth and controls had at each tap of the last case. It is held in memory: for small models."""

    def __init__(self) -> None:
        self._target: Target | None = None
        self._of: tuple[Any, ...] = ()
        self._met: Met = []

    def found(
        self, walk: Walk, ours: list[T5Gemma2], target: Target, case: str, dtype: str, spine: list[tuple[int, Tap]]
    ) -> Found:
        """What the walk finds, which meets them at `spine`."""
        of = case, dtype, tuple((call, tap.name) for call, tap in spine)
        if self._target is target and self._of == of:
            return walk.replayed(self._met)
        self._target, self._met = None, []  # until it is whole
        found = walk.run(ours, self._met)
        self._target, self._of = target, of
        return found
