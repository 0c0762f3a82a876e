"""A finding: what was judged at one tap of one call."""

from __future__ import annotations

import math
from dataclasses import dataclass

FAILURES = ("missing", "shape", "dtype", "nan", "exact", "mask", "ceiling", "values", "tail", "bias", "signature")


@dataclass(frozen=True)
class Finding:
    """What was found at one tap of one call.

    Args:
        status: "pass", or the first of FAILURES that applies.
        worst, median, p99: of the per-token ratios over valid tokens; NaN when values were not reached.
        token: index of the worst token along the tap's token axes.
        peer_error: that token's ‖peer − truth‖ / ‖truth‖; control_error likewise, after the floor.
        tokens: how many valid tokens were compared.
        detail: of a failure: expected and found, in words.
        judged: what was held against `limit`: the worst ratio of a local anchor in float32, the median of a cumulative
            one, in a half-precision lane the first test that failed (`half.py`).
        tail, bias, ceiling: of a half-precision lane: the largest |error| / bound beside the legal profiles', the mean
            of error / bound beyond theirs, and the largest |error| / worst-case bound: above 1 is proof.
    """

    tap: str
    call: int
    status: str
    worst: float = float("nan")
    median: float = float("nan")
    p99: float = float("nan")
    token: tuple[int, ...] = ()
    peer_error: float = float("nan")
    control_error: float = float("nan")
    tokens: int = 0
    detail: str = ""
    judged: float = float("nan")
    limit: float = float("nan")
    tail: float = float("nan")
    bias: float = float("nan")
    ceiling: float = float("nan")

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    @property
    def size(self) -> float:
        """What was judged, to find the largest by; infinite where there is no ratio."""
        return math.inf if math.isnan(self.judged) else self.judged
