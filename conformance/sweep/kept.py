"""The file of comparisons that have ended: JSON lines, the first of which says what they are of.

`--shard I/N --json FILE` writes all of its share at once, with a last line that says so; `merge` reads such files. Of
what a file holds nothing is believed: a line has a bound, there are no more lines than comparisons, and each is held
against the work.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from conformance.errors import UsageError
from conformance.exchange.plain import PlainError, decoded, encoded
from conformance.judge.comparisons import Comparison
from conformance.judge.sitting import Beside
from conformance.report.terms import Work
from conformance.sweep import header as headers
from conformance.sweep import record as records
from conformance.sweep.header import Header
from conformance.sweep.record import Record
from t5g2ref.config.fields import from_json, short
from t5g2ref.files import opened, write_text

MOST_BYTES = 1 << 28  # of a line; what a black box showed takes a sixth of it, see `judge.evidence`
_SUM = re.compile(rb', "sum": "([0-9a-f]{64})"\}')
_SUM_BYTES = len(', "sum": ""}') + 64


@dataclass(frozen=True)
class Ended:
    """A share's last line: how many comparisons it had, how long they took, and all that was known beside them."""

    comparisons: int
    seconds: float
    peak_bytes: int
    beside: Beside


@dataclass(frozen=True)
class Kept:
    """What a file holds; `ended` is None where its run did not come to an end."""

    header: Header
    work: Work
    records: Sequence[Record]
    ended: Ended | None


def line_of(value: dict[str, Any]) -> str:
    """A line of such a file: an object, with a checksum of what comes before it."""
    text = json.dumps(value, allow_nan=False)[:-1]
    return f'{text}, "sum": "{_sum(text.encode("ascii"))}"}}\n'


def _sum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def write(path: Path, header: Header, found: Iterable[Record], ended: Ended) -> None:
    """A share's file, whole or not at all. Raises UsageError for a comparison that is too large to be read again."""
    lines = [line_of(headers.written(header))]
    for one in found:
        lines.append(line_of(records.written(one)))
        if len(lines[-1]) > MOST_BYTES:
            raise UsageError(f"--shard: {one.comparison} takes {len(lines[-1])} bytes, expected {MOST_BYTES} at most")
    write_text(path, "".join((*lines, line_of({"end": encoded(ended)}))))


def read(path: Path) -> Kept:
    """What a file holds. Raises UsageError, which says in a line what is wrong with it."""
    try:
        with opened(path) as handle:
            lines = lines_of(handle, str(path))
            header = header_in(lines, str(path))
            work = header.work(str(path))
            found, ended = records_in(lines, work, str(path))
            return Kept(header, work, found, ended)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


Lines = Iterator[tuple[bytes, int]]
"""(line without its end, where it ends in the file)"""


def lines_of(handle: BinaryIO, where: str) -> Lines:
    """The lines of a file; a last one that has no end is none."""
    at = 0
    while line := handle.readline(MOST_BYTES + 1):
        at += len(line)
        if len(line) > MOST_BYTES:
            raise UsageError(f"{where}: a line has more than {MOST_BYTES} bytes, which no run writes")
        if not line.endswith(b"\n"):
            return
        yield line[:-1], at


def header_in(lines: Lines, where: str) -> Header:
    """What the first line says. Raises UsageError where there is none."""
    line, _ = next(lines, (b"", 0))
    if not line:
        raise UsageError(f"{where}: has no whole line: it was cut short, or is not what --shard I/N --json FILE writes")
    return headers.read(_object(line, where), where)


def records_in(lines: Lines, work: Work, path: str) -> tuple[list[Record], Ended | None]:
    """The records, each comparison once, and the last line, if it is there."""
    found: dict[Comparison, Record] = {}
    for number, (line, _) in enumerate(lines, 2):
        where = f"{path} line {number}"
        raw = _object(line, where)
        try:
            if "end" in raw:
                if set(raw) != {"end"} or next(lines, None) is not None:
                    raise PlainError(f"{where}: something follows the end")
                return list(found.values()), _ended(raw["end"], work, where)
            one = records.read(raw, work, where)
        except PlainError as error:
            raise UsageError(str(error)) from error
        if one.comparison in found:
            raise UsageError(f"{where}: {one.comparison} stands twice")
        found[one.comparison] = one
    return list(found.values()), None


def _ended(raw: Any, work: Work, where: str) -> Ended:
    ended: Ended = decoded(Ended, raw, f"{where}: end")
    records.beside_of(encoded(ended.beside), work, where)
    return ended


def _object(line: bytes, where: str) -> dict[str, Any]:
    """The object of a line, which is as it was written: the checksum finds what changed by itself, and is no seal."""
    try:
        raw = from_json(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {short(str(error))[1:-1]}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{where}: is {short(raw, 60)}, expected an object")
    text, end = line[:-_SUM_BYTES], _SUM.fullmatch(line[-_SUM_BYTES:])
    if end is None:
        report = "a report, and not what --shard I/N --json FILE writes" if "verdict" in raw else "no line with a sum"
        raise UsageError(f"{where}: is {report}")
    if end[1].decode() != _sum(text):
        raise UsageError(f"{where}: its checksum is another one: it was changed after it was written; judge it again")
    del raw["sum"]
    return raw
