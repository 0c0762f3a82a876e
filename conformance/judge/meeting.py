"""What meets at one tap, and what a lane makes of it: the types that the walk and its lanes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from conformance.measure.finding import Finding
from conformance.measure.half import Limit
from conformance.measure.match import Signature
from t5g2ref.dtypes import DType
from t5g2ref.model import T5Gemma2
from t5g2ref.taps import Tap

Array = Any
Place = tuple[int, str]  # call, name of the tap
UNUSABLE = ("missing", "shape", "dtype", "nan")  # statuses of values that no run can go on with


@dataclass(frozen=True)
class Meeting:
    """All values of one tap in one call.

    Args:
        peer: the peer's array; None where it shows none.
        truth: the float64 run's array.
        controls: the arrays of the legal runs in the peer's type.
        others: the arrays of what else walks beside them, such as bounds.
        valid: NumPy bool over the tap's token axes, False on padding; None where nothing is padded.
    """

    tap: Tap
    call: int
    peer: Array | None
    truth: Array
    controls: list[Array]
    others: list[Array]
    valid: Any

    @property
    def place(self) -> Place:
        return self.call, self.tap.name


@dataclass(frozen=True)
class Ended:
    """What a lane concludes once the case has been walked.

    Args:
        changed: findings that replace those given on the way.
        limits: of a half-precision lane, the limits of its ratios.
        signatures: defects looked for by their pattern.
        unclear: kinds of tap where rounding noise could hide anything.
    """

    changed: Mapping[Place, Finding] = field(default_factory=dict)
    limits: list[Limit] = field(default_factory=list)
    signatures: list[Signature] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)


class Lane(Protocol):
    """Judges one tap after the other, in one number type and under one anchor."""

    @property
    def dtype(self) -> DType:
        """The peer's number type."""

    @property
    def limit(self) -> float:
        """The largest ratio that one token may have. A divergence may be its square."""

    def members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        """The models that walk: truth and controls, and what else this lane needs beside them."""

    def look(self, meeting: Meeting) -> Finding:
        """The finding of a tap. A pass may still change where the lane judges at the end."""

    def end(self, found: Mapping[Place, Finding]) -> Ended:
        """Judge what needs all taps. `found` has every finding so far, in the order of the computation."""
