"""Log-probabilities of given ids in place of logits: truth and controls are brought to the same ids.

Each of ours is made in the type of its run, as the peer's is. What cannot be compared is a finding: a wrong shape, ids
that are none, or a distribution that does not add up to one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from conformance.activations import Dump
from conformance.cases.least import LOG_PROB_IDS, LOG_PROBS
from conformance.judge.meeting import Array, Meeting
from conformance.measure import limits
from conformance.measure.finding import Finding
from conformance.measure.logits import log_softmax
from conformance.measure.words import in_words
from t5g2ref.dtypes import DType, unit_roundoff

Host = np.ndarray[Any, Any]


def at_ids(meeting: Meeting, dump: Dump, dtype: DType) -> Meeting | Finding:
    """The meeting at the logits, with log-probabilities of the peer's ids in place of all values; or why not."""
    found, ids = (dump.get(meeting.call, name) for name in (LOG_PROBS, LOG_PROB_IDS))
    if found is None or ids is None:
        return replace(meeting, peer=None)
    wrong = _refused(meeting, found, ids, dump)
    if wrong is not None:
        return wrong
    xp, size = dump.backend.xp, meeting.truth.shape[-1]
    where = xp.clip(xp.asarray(ids, dtype=np.int64), 0, size - 1)  # out of range on padding alone

    def taken(logits: Array) -> Array:
        flat = log_softmax(xp, logits.reshape(-1, size)).reshape(logits.shape)
        return xp.take_along_axis(flat, where, axis=-1)

    ours = replace(meeting, peer=found, truth=taken(meeting.truth), controls=[taken(c) for c in meeting.controls])
    return _unnormalised(meeting, ours, dump, dtype) or ours


def whole(meeting: Meeting, logits: Meeting) -> bool:
    """Whether every id of the vocabulary has its log-probability."""
    return bool(meeting.truth.shape[-1] == logits.truth.shape[-1])


def _refused(meeting: Meeting, found: Array, ids: Array, dump: Dump) -> Finding | None:
    """The finding of log-probabilities or ids that cannot be looked up."""

    def failed(status: str, detail: str) -> Finding:
        return Finding(meeting.tap.name, meeting.call, status, detail=detail)

    (*tokens, size), wanted = meeting.truth.shape, "B T k"
    for name, value in ((LOG_PROBS, found), (LOG_PROB_IDS, ids)):
        shape = tuple(value.shape)
        if len(shape) != len(tokens) + 1 or list(shape[:-1]) != tokens or not 0 < shape[-1] <= size:
            said = f"expected {wanted} = ({', '.join(map(str, tokens))}, 1 to {size}), found {shape}"
            return failed("shape", f"{name}: {said}")
    if found.shape != ids.shape:
        return failed("shape", f"{LOG_PROBS} {tuple(found.shape)} and {LOG_PROB_IDS} {tuple(ids.shape)} have to agree")
    if ids.dtype.kind not in "iu":
        return failed("dtype", f"{LOG_PROB_IDS}: expected integers, found {ids.dtype}")
    return _strange(meeting, dump.backend.host(ids), size)


def _strange(meeting: Meeting, ids: Host, size: int) -> Finding | None:
    """The finding of an id that the vocabulary has not, or that a token has twice; padding does not count."""
    keep = np.ones(ids.shape[:-1], bool) if meeting.valid is None else meeting.valid
    outside = np.argwhere(keep[..., None] & ((ids < 0) | (ids >= size)))
    if len(outside):
        at = tuple(int(i) for i in outside[0])
        detail = f"{LOG_PROB_IDS}: expected ids from 0 to {size - 1}, found {ids[at]} at {at}"
        return Finding(meeting.tap.name, meeting.call, "exact", token=at[:-1], detail=detail)
    ordered = np.sort(ids, axis=-1)
    twice = np.argwhere(keep & (ordered[..., 1:] == ordered[..., :-1]).any(axis=-1))
    if len(twice):
        at = tuple(int(i) for i in twice[0])
        detail = f"{LOG_PROB_IDS}: token {at} has an id twice, expected each once"
        return Finding(meeting.tap.name, meeting.call, "exact", token=at, detail=detail)
    return None


def _unnormalised(logits: Meeting, ours: Meeting, dump: Dump, dtype: DType) -> Finding | None:
    """The finding of probabilities that do not add up to one, or to more than one where some ids alone are given.

    A log-probability is a logit less the logarithm of a sum. Each may be off by a legal run's roundings of its size.
    """
    xp, host, found = dump.backend.xp, dump.backend.host, cast(Any, ours.peer)
    values = (found.astype(np.float32) if found.dtype.itemsize < 4 else found).astype(np.float64)
    with np.errstate(all="ignore"):  # what is not finite is found by the lane
        total = host(xp.log(xp.exp(values).sum(axis=-1)))
        size = host(xp.maximum(abs(logits.truth).max(axis=-1), abs(values).max(axis=-1)))
    most = limits.LIMITS["cumulative"] * unit_roundoff(dtype) * size
    keep = np.isfinite(total) if logits.valid is None else np.isfinite(total) & logits.valid
    off = np.abs(total) if whole(ours, logits) else total
    wrong = np.argwhere(keep & (off > most))
    if not len(wrong):
        return None
    at = tuple(int(i) for i in wrong[0])
    most_said = "expected 1" if whole(ours, logits) else "expected at most 1"
    detail = f"token {at}: its probabilities add up to {in_words(float(np.exp(total[at])))}, {most_said}"
    return Finding(ours.tap.name, ours.call, "exact", token=at, detail=detail)
