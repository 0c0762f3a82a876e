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
from t5g2ref.taps import Tap

Host = np.ndarray[Any, Any]
Place = tuple[int, str]
MOST_COLUMNS = 4096  # of a vocabulary: they say what all of it does
MOST_NUMBERS = 1 << 21  # of a case, where it has many tokens: a line of a file has to hold them
SEED = 20260923  # of their choice


@dataclass(frozen=True)
class Evidence:
    """The numbers of one case, by call and tap.

    Args:
        case: its name.
        values: (tokens, features) float64, padding left out; as they were shown where the shape is not the tap's.
        ids: the ids (tokens, k) of log-probabilities, where these stand for logits.
        deviates: whether the peer was found wrong in this case.
        most: how many features are kept; see `columns`.
    """

    case: str
    values: Mapping[Place, Host]
    ids: Mapping[Place, Host]
    deviates: bool = True
    most: int = MOST_COLUMNS


NO_NUMBERS = "OSUMm"
"""Kinds of arrays whose elements are objects, texts or times."""


def evidence(target: Target, case: Case, dump: Dump, *, deviates: bool = True) -> Evidence:
    """What the dump holds of it."""
    values, ids = dict[Place, Host](), dict[Place, Host]()
    tokens = sum(array.size // max(1, array.shape[-1]) for _, _, array, _ in _arrays(target, case, dump))
    most = max(1, min(MOST_COLUMNS, MOST_NUMBERS // max(1, tokens)))
    for call, tap, value, chosen in _arrays(target, case, dump):
        rows, *more = (
            valid_tokens(target.backend.host(array), tap, case, call) for array in (value, chosen) if array is not None
        )
        values[call, tap.name] = columns(rows.astype(np.float64), most)
        if more:
            ids[call, tap.name] = columns(more[0], most)
    return Evidence(case.name, values, ids, deviates, most)


def _arrays(target: Target, case: Case, dump: Dump) -> Iterator[tuple[int, Tap, Any, Any]]:
    """(call, tap, array, ids of log-probabilities, where these stand for logits)."""
    for call, tap in plan_of(target.config, case):
        if tap.name not in (LOGITS, ENCODED):
            continue
        pair = tap.name == LOGITS and dump.get(call, LOGITS) is None
        value, ids = (dump.get(call, name) for name in ((LOG_PROBS, LOG_PROB_IDS) if pair else (tap.name, "")))
        if value is None or (pair and ids is None):
            continue
        if value.ndim != len(tap.shape.split()) or value.dtype.kind in NO_NUMBERS:  # a finding says so already
            continue
        yield call, tap, value, ids


def columns(rows: Host, most: int = MOST_COLUMNS) -> Host:
    """The numbers that are looked at: of a large vocabulary so many, the same for everyone."""
    if rows.ndim == 0 or rows.shape[-1] <= most:
        return rows
    rng = np.random.default_rng(SEED)
    return rows[..., np.sort(rng.choice(rows.shape[-1], most, replace=False))]


def alike(shown: Evidence, place: Place, rows: Host) -> Host:
    """Our own rows of a tap as the evidence has it: the same numbers of it, or log-probabilities of the same ids."""
    ids = shown.ids.get(place)
    if ids is None or place[1] != LOGITS:
        return columns(rows.astype(np.float64), shown.most)
    if ids.shape[:-1] != rows.shape[:-1]:
        return rows
    logs = log_softmax(np, rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)
    return np.take_along_axis(logs, np.clip(ids, 0, rows.shape[-1] - 1), -1).astype(np.float64)
