"""Log-probabilities of all cases together: a small error at every token is no case's worst, and is seen by their sum.

A temperature of 1.1 moves a token by less than rounding may move one. Over a hundred tokens it is five times too far.
"""

from __future__ import annotations

from collections.abc import Sequence

from conformance.judge.judgement import Judgement
from conformance.judge.together import TOGETHER, Judged
from conformance.measure import limits
from conformance.measure.finding import Finding
from conformance.measure.words import in_words
from t5g2ref.dtypes import HALF


def pooled(found: Judged) -> list[tuple[str, Judgement]]:
    """(checkpoint, judgement) of each peer that gave log-probabilities of enough tokens.

    Args:
        found: (checkpoint, judgement) of all cases.
    """
    groups: dict[tuple[str, str, str], list[Judgement]] = {}
    for target, j in found:
        if "rms" in j.logits:
            groups.setdefault((target, j.peer, j.dtype), []).append(j)
    return [
        (target, Judgement(peer, TOGETHER, exact=[_finding(group)], dtype=dtype))
        for (target, peer, dtype), group in groups.items()
        if _tokens(group) >= limits.FEW_NUMBERS
    ]


def _tokens(group: Sequence[Judgement]) -> int:
    return int(sum(j.logits["tokens"] for j in group))


def _finding(group: Sequence[Judgement]) -> Finding:
    """The root mean square of |Δ log p| over all tokens, beside a legal run's."""
    peer, control = (sum(j.logits[name] ** 2 * j.logits["tokens"] for j in group) for name in ("rms", "control_rms"))
    ratio = (peer / control) ** 0.5 if control else float("inf")
    limit = limits.LIMITS["half" if group[0].dtype in HALF else "cumulative"]
    detail = f"over {_tokens(group)} tokens, |Δ log p| is {in_words(ratio)} times a legal run's (root mean square)"
    status = "pass" if ratio <= limit else "values"
    return Finding("logits", 0, status, judged=ratio, limit=limit, detail=detail)
