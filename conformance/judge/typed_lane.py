"""The local anchor of a peer in a half type that keeps float32 in some modules on purpose.

What it shows there is judged in float32, beside float32 controls and bounds, and has to be float32. Everything else is
judged in its half type. There our runs round what they are handed to that type, as the peer has to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from conformance.cases.plan import Shown
from conformance.judge.lanes import SingleLane
from conformance.judge.meeting import Ended, Lane, Meeting, Place
from conformance.judge.operations import Operations
from conformance.measure.finding import Finding
from conformance.oracle.run_case import legal
from conformance.target import Target
from t5g2ref.dtypes import DType
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics

WIDE: DType = "float32"


class TypedLane:
    """A lane of a half type and one of float32, each for its own taps.

    Args:
        half: judges the taps that are in the peer's type.
        single: judges those that are in float32.
        operations: those of `half`, of which a value in float32 is none: it is rounded before anybody goes on with it.
        wide: says which taps are in float32.
    """

    def __init__(self, half: Lane, single: SingleLane, operations: Operations, wide: Shown) -> None:
        self.dtype, self.limit = half.dtype, half.limit
        self._half, self._single, self._operations, self._wide = half, single, operations, wide
        self._beside = self._controls = 0

    def members(self, ours: list[T5Gemma2]) -> list[T5Gemma2]:
        """Truth, the controls and what the half type's lane needs; then float32 controls and what that lane needs."""
        truth, half = ours[0], self._half.members(ours)
        controls = [
            truth.with_numerics(Numerics(WIDE, profile, truth.nx.backend, embed_dtype=self.dtype))
            for profile in legal(WIDE)
        ]
        self._beside, self._controls = len(half) - len(ours), len(controls)
        return [*half, *self._single.members([truth, *controls])[1:]]

    def look(self, meeting: Meeting) -> Finding:
        others, single = meeting.others[: self._beside], meeting.others[self._beside :]
        if meeting.tap.exact or not self._wide(meeting.tap.name):
            return self._half.look(replace(meeting, others=others))
        self._operations.lost(meeting.place)
        return self._single.look(replace(meeting, controls=single[: self._controls], others=single[self._controls :]))

    def end(self, found: Mapping[Place, Finding]) -> Ended:
        ended = self._half.end(found)
        return replace(ended, unclear=[*dict.fromkeys([*ended.unclear, *self._single.end(found).unclear])])


def kind_at(tap: str, target: Target, dtype: DType, wide: Shown) -> tuple[Target, DType]:
    """The type that a tap is judged in, and the checkpoint with the weights that such a peer has."""
    return (replace(target, weights=weights_of(target, dtype, wide)), WIDE) if wide(tap) else (target, dtype)


def weights_of(target: Target, dtype: DType, wide: Shown) -> Mapping[str, Any]:
    """The weights that such a peer runs with: as the checkpoint has them in modules that are float32, else rounded."""
    return {
        name: target.weights[name] if wide(name.rpartition(".")[0]) else value
        for name, value in target.rounded(dtype).items()
    }
