"""Which taps stand for one operation: those whose every input the peer shows, in a form that can be gone on with.

Bounds and patterns are of single operations. Behind a tap that is not shown several lie together, and nothing is said
of them but the ratio.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from conformance.cases.case import Case
from conformance.cases.plan import inputs
from conformance.judge.meeting import UNUSABLE, Place
from conformance.measure.finding import Finding
from t5g2ref.config import Config


class Operations:
    """Says of each tap whether one operation lies before it, as the walk goes on.

    Args:
        made_from: each place → those that it is computed from; none of them is a mask.
        shown: the places that the peer shows.
    """

    def __init__(self, made_from: Mapping[Place, Sequence[Place]], shown: Iterable[Place]) -> None:
        self._made_from, self._usable = made_from, set(shown)

    @staticmethod
    def of(config: Config, case: Case, shown: Iterable[Place]) -> Operations:
        return Operations(inputs(config, case), shown)

    def single(self, place: Place) -> bool:
        """Whether everything that the tap is computed from is shown and usable."""
        return place in self._made_from and all(source in self._usable for source in self._made_from[place])

    def met(self, finding: Finding) -> None:
        """Take out what cannot be gone on with."""
        if finding.status in UNUSABLE:
            self._usable.discard((finding.call, finding.tap))

    def lost(self, place: Place) -> None:
        """Take out a value that is rounded before anybody goes on with it: one more operation lies behind it."""
        self._usable.discard(place)

    def __bool__(self) -> bool:
        """Whether there is any such tap."""
        return any(map(self.single, self._usable))
