"""`--resume FILE`: comparisons are kept as they end, so that an interrupted run goes on where it was.

A line is added for each. What a power cut leaves of the last one is taken away again. A run that comes to its end
deletes the file: the next one shall judge what is there then.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from conformance.errors import UsageError
from conformance.report.terms import Work
from conformance.sweep import header as headers
from conformance.sweep import record as records
from conformance.sweep.header import Header, differs
from conformance.sweep.kept import MOST_BYTES, Lines, header_in, line_of, lines_of, records_in
from conformance.sweep.record import Record
from t5g2ref.files import locked, opened


class Keeping:
    """A file that comparisons are added to as they end.

    Args:
        path: what an interrupted run of the same left, or no file yet.
        work: what there is to judge; records are held against it.

    Attributes:
        found: what the file held.

    Raises:
        UsageError: it cannot be written, holds something else, or another process is adding to it.
    """

    found: Sequence[Record]

    def __init__(self, path: Path, header: Header, work: Work) -> None:
        self._path, self.where = path, f"--resume {path}"
        self.found, self._end = (), 0
        try:
            self._handle = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UsageError(f"{self.where}: cannot be written: {error.strerror}") from error
        try:
            self._begin(header, work)
        except BaseException:
            self._handle.close()
            raise

    def _begin(self, header: Header, work: Work) -> None:
        """Read what the file holds; what is behind its last whole line is taken away."""
        if not locked(self._handle):
            raise UsageError(f"{self.where}: another process is adding to it; give each run a file of its own")
        with opened(self._path) as handle:
            lines = lines_of(handle, self.where)
            first = next(lines, None)
            if first is not None:
                self._end = first[1]
                self._read(chain([first], lines), header, work)
        begun = line_of(headers.written(header))
        if first is None:
            self._only_ours(begun)
        self._handle.truncate(self._end)
        if first is None:
            self._add(begun)

    def _only_ours(self, begun: str) -> None:
        """UsageError unless the file, which has no whole line, is empty or what a power cut left of ours."""
        with opened(self._path) as handle:
            content = handle.read(len(begun))
        if not begun.startswith(content.decode("latin-1")):
            raise UsageError(f"{self.where}: holds something else, which would be lost; give another file")

    def _read(self, lines: Lines, header: Header, work: Work) -> None:
        before = header_in(lines, self.where)
        if before.share != header.share:
            raise UsageError(f"{self.where}: is of --shard {before.share}, not {header.share}; give another file")
        if unlike := differs(before, header):
            raise UsageError(f"{self.where}: was begun with {unlike}; give another file, or delete it")
        self.found, ended = records_in(self._noting(lines), work, self.where)
        if ended is not None:
            raise UsageError(f"{self.where}: is a whole share, which would be lost; give another file, or merge it")

    def _noting(self, lines: Lines) -> Lines:
        """The lines, noting where the last one ends."""
        for line, end in lines:
            self._end = end
            yield line, end

    def add(self, one: Record) -> None:
        """Keep a comparison. One that is too large to be read again, or for the disk, will be made again."""
        line = line_of(records.written(one))
        if len(line) > MOST_BYTES or self._handle.closed:
            return
        try:
            self._add(line)
        except OSError as error:  # it must not cost the run
            self._handle.truncate(self._end)
            self._handle.close()
            why = f"{self.where}: cannot be written: {error.strerror}; what comes now is not kept"
            print(f"conformance: {why}", file=sys.stderr, flush=True)

    def _add(self, line: str) -> None:
        content = line.encode("ascii")
        if self._handle.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._handle.fileno())
        self._end += len(content)

    def close(self, *, whole: bool) -> None:
        """End. A whole run needs the file no more."""
        if whole:
            self._path.unlink(missing_ok=True)
        self._handle.close()
