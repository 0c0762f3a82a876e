"""Puts the files of all shards together, where they are of one run, and have each of its comparisons once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.errors import UsageError
from conformance.judge.comparisons import Found
from conformance.judge.sitting import Beside
from conformance.report.terms import Work
from conformance.sweep.header import Header, differs
from conformance.sweep.kept import Kept, read
from conformance.sweep.share import missing, part

NAMED = 8  # shards that a line names


@dataclass(frozen=True)
class Merged:
    """What all shards found.

    Args:
        seconds: of all shards together; peak_bytes: the most that one had.
    """

    header: Header
    work: Work
    found: Found
    beside: Beside
    seconds: float
    peak_bytes: int


def merged(paths: Sequence[Path]) -> Merged:
    """What the files found, all of them. Raises UsageError, which names the file and what does not fit, in a line."""
    files = [(path, read(path)) for path in paths]
    first, one = files[0]
    for path, other in files[1:]:
        if unlike := differs(other.header, one.header):
            raise UsageError(f"{path}: was judged with {unlike} as in {first}: judge all shards alike")
    _complete(files)
    beside = Beside()
    for path, kept in files:
        _whole(path, kept)
        assert kept.ended is not None
        for said in (*(record.beside for record in kept.records), kept.ended.beside):
            if unlike := said.unlike(beside):
                raise UsageError(f"{path}: judged {unlike} as another shard: judge all shards alike")
            beside.add(said)
    ended = [kept.ended for _, kept in files if kept.ended is not None]
    header = _noted([kept.header for _, kept in files])
    return Merged(
        header,
        header.work(str(first)),
        [(r.comparison.target, j) for _, kept in files for r in kept.records for j in r.judgements],
        beside,
        sum(e.seconds for e in ended),
        max(e.peak_bytes for e in ended),
    )


def _noted(headers: Sequence[Header]) -> Header:
    """The header of all, with the notes of each, once. They are caveats, and no part of what is judged: one machine
    found the weights in its cache, another one downloaded them."""

    def every(notes: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for some in notes for note in some))

    first = headers[0]
    checkpoints = [
        replace(checkpoint, notes=every(header.checkpoints[i].notes for header in headers))
        for i, checkpoint in enumerate(first.checkpoints)
    ]
    terms = replace(first.terms, notes=every(header.terms.notes for header in headers))
    return replace(first, terms=terms, checkpoints=tuple(checkpoints))


def _complete(files: Sequence[tuple[Path, Kept]]) -> None:
    """Raises UsageError unless every shard is there once."""
    given = dict[int, Path]()
    of = files[0][1].header.share.of
    for path, kept in files:
        share = kept.header.share
        if share.of != of:
            raise UsageError(f"{path}: is of --shard {share}, expected one of {of} as in {files[0][0]}")
        if share.number in given:
            raise UsageError(f"{path}: is of --shard {share}, and so is {given[share.number]}: give each shard once")
        given[share.number] = path
    if gaps := [str(i) for i in range(1, of + 1) if i not in given]:
        more = f" and {len(gaps) - NAMED} more" if len(gaps) > NAMED else ""
        raise UsageError(f"--shard {', '.join(gaps[:NAMED])}{more} of {of}: no file is of it; give those of all shards")


def _whole(path: Path, kept: Kept) -> None:
    """Raises UsageError unless the file has its share of the comparisons, and no others."""
    share, there = kept.header.share, [record.comparison for record in kept.records]
    wanted = part(kept.work, share)
    if strange := missing(there, wanted):
        raise UsageError(f"{path}: has {strange[0]}, which is not of --shard {share}: judge that shard again")
    if kept.ended is None or kept.ended.comparisons != len(there) or missing(wanted, there):
        lacking = missing(wanted, there)
        first = f", first {lacking[0]}" if lacking else ""
        raise UsageError(
            f"{path}: was cut short, {len(lacking)} of {len(wanted)} comparisons of --shard {share} are not there"
            f"{first}: judge that shard again"
        )
