"""What a black box showed in one case, kept for a diagnosis: the numbers of every token that counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.cases.least import ENCODED, LOG_PROB_IDS, LOG_PROBS, LOGITS
from conformance.cases.plan import plan_of, valid_tokens
from conformance.measure.logits import log_softmax
from conformance.target import Target

Host = np.ndarray[Any, Any]
Place = tuple[int, str]
MOST_COLUMNS = 4096  # of a vocabulary: they say what all of it does
SEED = 20260923  # of their choice


@dataclass(frozen=True)
class Evidence:
    """The numbers of one case, by call and tap.

    Args:
        case: its name.
        values: (tokens, features) float64, padding left out; as they were shown where the shape is not the tap's.
        ids: the ids (tokens, k) of log-probabilities, where these stand for logits.
        deviates: whether the peer was found wrong in this case.
    """

    case: str
    values: Mapping[Place, Host]
    ids: Mapping[Place, Host]
    deviates: bool = True


NO_NUMBERS = "OSUMm"
"""Kinds of arrays whose elements are objects, texts or times."""


def evidence(target: Target, case: Case, dump: Dump, *, deviates: bool = True) -> Evidence:
    """What the dump holds of it."""
    values, ids = dict[Place, Host](), dict[Place, Host]()
    for call, name, value, chosen in _shown(target, case, dump):
        values[call, name] = value
        if chosen is not None:
            ids[call, name] = chosen
    return Evidence(case.name, values, ids, deviates)


def _shown(target: Target, case: Case, dump: Dump) -> Iterator[tuple[int, str, Host, Host | None]]:
    """(call, tap, numbers, ids of log-probabilities)."""
    for call, tap in plan_of(target.config, case):
        if tap.name not in (LOGITS, ENCODED):
            continue
        pair = tap.name == LOGITS and dump.get(call, LOGITS) is None
        value, ids = (dump.get(call, name) for name in ((LOG_PROBS, LOG_PROB_IDS) if pair else (tap.name, "")))
        if value is None or (pair and ids is None):
            continue
        if value.ndim != len(tap.shape.split()) or value.dtype.kind in NO_NUMBERS:  # a finding says so already
            continue
        rows, *more = [
            valid_tokens(target.backend.host(array), tap, case, call) for array in (value, ids) if array is not None
        ]
        yield call, tap.name, columns(rows.astype(np.float64)), more[0] if more else None


def columns(rows: Host) -> Host:
    """The numbers that are looked at: of a large vocabulary a part, the same for everyone."""
    if rows.shape[-1] <= MOST_COLUMNS:
        return rows
    rng = np.random.default_rng(SEED)
    return rows[..., np.sort(rng.choice(rows.shape[-1], MOST_COLUMNS, replace=False))]


def alike(shown: Evidence, place: Place, rows: Host) -> Host:
    """Our own rows of a tap as the evidence has it: the same numbers of it, or log-probabilities of the same ids."""
    ids = shown.ids.get(place)
    if ids is None or place[1] != LOGITS:
        return columns(rows.astype(np.float64))
    if ids.shape[:-1] != rows.shape[:-1]:
        return rows
    logs = log_softmax(np, rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)
    return np.take_along_axis(logs, np.clip(ids, 0, rows.shape[-1] - 1), -1).astype(np.float64)
