"""The statistics of a half-precision lane: each tap is measured by itself, and all of a case are judged together.

In bfloat16 a defect may be smaller than the rounding around it, so one ratio with a wide limit will not do. Every tap
has four tests of its own, in this order. The patterns of defects are a fifth (`judge/patterns.py`).

* **ceiling**: no element's error may exceed its worst-case bound (`oracle/worst_case.py`). An error above it is proof.
* **values**: the ratio to the largest legal profile. The median token's is held against a limit k, every token's
  against its counterpart. A bootstrap over tokens of the legal profiles' own errors gives both; neither is above 2.
* **tail**: the largest |error| / bound, beside that of the legal profiles.
* **bias**: the mean of error / bound, as it is and along the truth's sign. Rounding to nearest has none.

Where the legal profiles themselves are off by a quarter of the value, the tap says nothing. It is unclear, and the
verdict is INCOMPLETE.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.cases.plan import kind_of
from conformance.measure import limits
from conformance.measure.finding import Finding
from conformance.measure.ratio import middle
from conformance.measure.sums import Moments
from conformance.measure.words import in_words
from t5g2ref.dtypes import unit_roundoff
from t5g2ref.taps import Tap

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Measured:
    """One tap of one call, measured and not yet judged; `tokens` are the indices (n, axes) of the valid ones."""

    tap: Tap
    call: int
    moments: Moments
    tokens: Host
    elements: int = 0

    @property
    def kind(self) -> str:
        return kind_of(self.tap.name)


Yarded = tuple[Measured, Host]
"""A tap, and the error that each of its tokens may have."""


@dataclass(frozen=True)
class Limit:
    """k of one kind of tap in one case.

    Args:
        median, worst: what the median token's ratio, and every token's, is held against.
        tokens: how many legal errors it was drawn from.
        raw: what the bootstrap gave for the median and the worst before they were cut to [1, 2].
    """

    kind: str
    median: float
    worst: float
    tokens: int
    raw: tuple[float, float]


def judged(measured: Sequence[Measured], dtype: str) -> tuple[list[Finding], list[Limit], list[str]]:
    """Findings in the order given, the limits that they were held against, and the kinds of tap that are unclear."""
    pairs = [(m, yardstick(m.moments, dtype)) for m in measured]
    groups: dict[str, list[Yarded]] = defaultdict(list)
    for m, allowed in pairs:
        groups[m.kind].append((m, allowed))
    k = {kind: limit_of(kind, group) for kind, group in groups.items()}
    findings = [_finding(m, k[m.kind], allowed) for m, allowed in pairs]
    unclear = [kind for kind, group in groups.items() if _unclear(group)]
    return findings, list(k.values()), unclear


def yardstick(m: Moments, dtype: str) -> Host:
    """(tokens,): the error that each token may have: the largest legal one, no less than what is typical of the tap."""
    legal, u = m.errors[1:].max(axis=0), unit_roundoff(dtype)
    if m.features < limits.FEW_NUMBERS:  # two roundings: transformers forms a classifier's loss in the half type
        return np.asarray(np.maximum(legal.max(), 2 * u * m.norm))
    typical = middle(np.sort(_relative(legal, m.norm)))
    return np.asarray(np.maximum(legal, max(typical, limits.ROUNDING_FLOOR * u) * m.norm))


def _relative(error: Host, norm: Host) -> Host:
    return np.divide(error, norm, out=np.zeros_like(error), where=norm > 0)


def limit_of(kind: str, group: Sequence[Yarded]) -> Limit:
    """k from a bootstrap: were the peer one of the legal profiles, with roundings of its own, how large could its ratio
    be? Errors of the noisiest profile and yardsticks, each relative to its token, are drawn independently from all
    tokens of the kind, as many as the smallest tap has; the ratio's median and maximum are taken; the largest of
    these draws is k. The generator is seeded by the kind: a verdict does not depend on luck."""
    allowed = np.concatenate([_relative(y, m.moments.norm) for m, y in group])
    legal = np.concatenate([_relative(m.moments.errors[1:], m.moments.norm[None]) for m, _ in group], axis=1)
    own = legal[legal.mean(axis=1).argmax()]
    raw = (limits.LIMITS["half"], limits.LIMITS["half"])  # of so few errors nothing can be drawn
    if allowed.size >= limits.BOOTSTRAP_LEAST and np.isfinite(own).all() and (allowed > 0).any():
        count = min(limits.BOOTSTRAP_TOKENS, *(m.moments.norm.size for m, _ in group), allowed.size)
        rng = np.random.default_rng([20251212, *kind.encode()])
        size = limits.BOOTSTRAP_DRAWS, count
        drawn = rng.choice(own, size) / rng.choice(allowed[allowed > 0], size)
        raw = (float(np.median(drawn, axis=1).max()), float(drawn.max()))
    median, worst = (min(limits.LIMITS["half"], max(1.0, value)) for value in raw)
    return Limit(kind, median, max(worst, median), allowed.size, raw)


def _unclear(group: Sequence[Yarded]) -> bool:
    relative = (_relative(y, m.moments.norm) for m, y in group)
    return any(middle(np.sort(each)) > limits.UNCLEAR_ERROR for each in relative)


def _finding(m: Measured, k: Limit, allowed: Host) -> Finding:
    moments = m.moments
    ratio = np.divide(moments.errors[0], allowed, out=np.where(moments.errors[0] > 0, np.inf, 0.0), where=allowed > 0)
    ratio = np.where(np.isfinite(moments.errors[0]) & np.isfinite(allowed), ratio, np.nan)
    at, ordered = int(ratio.argmax()), np.sort(ratio)
    bias = _bias(moments)
    scale = moments.norm[at] or 1.0
    found = Finding(
        m.tap.name,
        m.call,
        "pass",
        float(ratio[at]),
        middle(ordered),
        float("nan") if np.isnan(ordered[-1]) else float(ordered[math.ceil(0.99 * (len(ordered) - 1))]),
        tuple(int(i) for i in m.tokens[at]),
        float(moments.errors[0][at] / scale),
        float(allowed[at] / scale),
        ratio.size,
        tail=_tail(moments),
        bias=bias[0],
        ceiling=float(moments.top[0].max()) if moments.bounded else float("nan"),
    )
    return _verdict(found, moments, k, m.tokens, bias)


def _verdict(found: Finding, moments: Moments, k: Limit, tokens: Host, leaning: tuple[float, float]) -> Finding:
    """The finding with the first test that it fails; each is written so that a NaN fails."""

    def failed(status: str, judged: float, limit: float, detail: str) -> Finding:
        return replace(found, status=status, judged=judged, limit=limit, detail=detail)

    bias, allowed = leaning
    if not np.isfinite(found.worst):
        return failed("values", float("nan"), k.worst, "the reference's own numbers are not finite here")
    if moments.bounded and not found.ceiling <= limits.CEILING:
        at = tuple(int(i) for i in tokens[int(moments.top[0].argmax())])
        detail = f"token {at}: an error {in_words(found.ceiling)} times the worst that legal rounding can do: proof"
        return replace(failed("ceiling", found.ceiling, limits.CEILING, detail), token=at)
    if not found.median <= k.median:
        return failed(
            "values", found.median, k.median, f"the median token is {in_words(found.median)} times the legal error"
        )
    if not found.worst <= k.worst:
        return failed(
            "values", found.worst, k.worst, f"the worst token is {in_words(found.worst)} times the legal error"
        )
    if not found.tail <= (most := limits.LIMITS["half"]):
        return failed(
            "tail", found.tail, most, f"the largest error is {in_words(found.tail)} times the largest legal one"
        )
    if not bias <= allowed:
        return failed("bias", bias, allowed, f"errors lean to one side by {in_words(bias)} of the worst-case error")
    return replace(found, judged=found.worst, limit=k.worst)


def _tail(m: Moments) -> float:
    """The peer's largest |error| / bound over the legal profiles'; 0 where there are too few elements, or no bound."""
    legal = float(m.top[1:].max())
    if m.features * m.norm.size < limits.TAIL_ELEMENTS or legal == 0:
        return 0.0
    return float(m.top[0].max()) / legal


def _bias(m: Moments) -> tuple[float, float]:
    """The larger of |mean error / bound| as it is and along the truth's sign, beyond that of the legal profiles; and
    what is allowed of it: `BIAS`, and `BIAS_ERRORS` standard errors, of the elements and of the tokens' own means."""
    count, worst, allowed = m.features * m.norm.size, 0.0, limits.BIAS
    for sums in (m.gain, m.shift):
        means = sums.sum(axis=1) / count
        spread = np.sqrt(m.square[0].sum()) / count
        if m.norm.size > 1:
            spread = max(spread, float((sums[0] / m.features).std(ddof=1)) / np.sqrt(m.norm.size))
        excess = abs(float(means[0])) - float(np.abs(means[1:]).max())
        if excess - limits.BIAS_ERRORS * spread > worst - (allowed - limits.BIAS):
            worst, allowed = excess, limits.BIAS + limits.BIAS_ERRORS * spread
    return worst, allowed
