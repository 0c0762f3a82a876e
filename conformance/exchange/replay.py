"""Reads a replay: prompts, ids and log-probabilities of somebody's server, a JSON object a line. It is untrusted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.errors import UsageError
from t5g2ref.config.fields import short
from t5g2ref.files import opened

MAX_BYTES = 1 << 26
MOST_LINES, MOST_IDS, MOST_TOP = 10_000, 1 << 17, 1000
NEEDED, OPTIONAL = ("prompt_ids", "output_ids", "log_probs"), ("top_ids", "top_log_probs", "name")
LONGEST = 64
TAKEN = ("exact", "together")  # rows of a report that are no cases

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Line:
    """One request to a server, and what it answered.

    Args:
        where: "FILE line 3", for errors; name: of its case.
        prompt: (S,) int64, the encoder's ids.
        output: (T,) int64, the ids that were scored; ids[:, 0] are the same.
        ids, log_probs: (T, k) int64 and float64: after each prefix of `output`, in nats.
    """

    where: str
    name: str
    prompt: Host
    output: Host
    ids: Host
    log_probs: Host


def read(path: Path) -> list[Line]:
    """Every line of the file; empty ones do not count. Raises UsageError, which names the line and the field."""
    try:
        with opened(path) as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path}: larger than {MAX_BYTES} bytes; split it")
    found, names = list[Line](), set[str]()
    for number, text in enumerate(data.splitlines(), 1):
        if text.strip():
            line = _line(text, f"{path} line {number}", f"line {number}")
            if line.name in names:
                raise UsageError(f"{line.where}: name {line.name!r} stands twice; give each line its own, or none")
            names.add(line.name)
            found.append(line)
    if not 0 < len(found) <= MOST_LINES:
        raise UsageError(f"{path}: has {len(found)} lines, expected 1 to {MOST_LINES}")
    return found


def _line(text: bytes, where: str, number: str) -> Line:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {short(str(error))[1:-1]}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{where}: is {short(raw, 60)}, expected an object with {', '.join(NEEDED)}")
    if strange := [key for key in raw if key not in (*NEEDED, *OPTIONAL)]:
        raise UsageError(f"{where}: has {short(strange[0], 60)}, expected {', '.join((*NEEDED, *OPTIONAL))}")
    prompt, output = (_ids(raw.get(name), f"{where}: {name}", MOST_IDS) for name in NEEDED[:2])
    own = _numbers(raw.get("log_probs"), f"{where}: log_probs", len(output))
    ids, values = output[:, None], own[:, None]
    if "top_ids" in raw or "top_log_probs" in raw:
        ids, values = _with_top(raw, where, output, own)
    return Line(where, _name(raw.get("name", number), where), prompt, output, ids, values)


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= LONGEST:
        raise UsageError(f"{where}: name is {short(value, 60)}, expected 1 to {LONGEST} printable characters")
    if value in TAKEN:
        raise UsageError(f"{where}: name is {value!r}, which a report's own row is called; choose another")
    return value


def _ids(value: Any, where: str, most: int) -> Host:
    """(n,) int64 from a list of 1 to `most` ids."""
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise UsageError(f"{where} is {short(value, 60)}, expected a list of 1 to {most} ids")
    wrong = next((i for i, x in enumerate(value) if type(x) is not int or not 0 <= x < 1 << 31), None)
    if wrong is not None:
        raise UsageError(f"{where}[{wrong}] is {short(value[wrong], 60)}, expected a token id")
    return np.array(value, np.int64)


def _numbers(value: Any, where: str, count: int) -> Host:
    """(count,) float64 from a list of log-probabilities."""
    if not isinstance(value, list) or len(value) != count:
        found = f"a list of {len(value)}" if isinstance(value, list) else short(value, 60)
        raise UsageError(f"{where} is {found}, expected {count} log-probabilities, one for each id")
    for i, x in enumerate(value):
        if type(x) not in (int, float) or not -math.inf < x <= 0:
            raise UsageError(f"{where}[{i}] is {short(x, 60)}, expected a finite number of nats, at most 0")
    return np.array(value, np.float64)


def _with_top(raw: dict[str, Any], where: str, output: Host, own: Host) -> tuple[Host, Host]:
    """(T, k) ids and log-probabilities: the output's own first, then the best of the others, as many in each row."""
    tops, values = (raw.get(name) for name in OPTIONAL[:2])
    for name, value in zip(OPTIONAL, (tops, values), strict=False):
        if not isinstance(value, list) or len(value) != len(output):
            raise UsageError(f"{where}: {name} is {short(value, 60)}, expected {len(output)} lists, one for each id")
    rows = [*_rows(where, tops, values)]
    ids, best = list[list[int]](), list[list[float]]()
    width = min((len(row) for row in rows), default=0)
    for at, (row, token, value) in enumerate(zip(rows, output.tolist(), own.tolist(), strict=True)):
        if row.get(token, value) != value:
            said = f"id {token} has {value} in log_probs and {row[token]} in top_log_probs"
            raise UsageError(f"{where}: {said} at position {at}, expected the same")
        others = sorted((pair for pair in row.items() if pair[0] != token), key=lambda pair: -pair[1])
        others = others[: max(0, width - 1)]
        ids.append([token, *(i for i, _ in others)])
        best.append([value, *(v for _, v in others)])
    return np.array(ids, np.int64), np.array(best, np.float64)


def _rows(where: str, tops: Any, values: Any) -> Iterator[dict[int, float]]:
    """id → log-probability for each position."""
    for at, (top, value) in enumerate(zip(tops, values, strict=True)):
        ids = _ids(top, f"{where}: top_ids[{at}]", MOST_TOP).tolist()
        if len(set(ids)) != len(ids):
            raise UsageError(f"{where}: top_ids[{at}] has an id twice, expected each once")
        yield dict(zip(ids, _numbers(value, f"{where}: top_log_probs[{at}]", len(ids)).tolist(), strict=True))
