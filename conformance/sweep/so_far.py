"""What a run has found until now, and the file where that is kept."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.errors import UsageError
from conformance.judge.comparisons import Comparison, Found
from conformance.judge.judgement import Judgement
from conformance.judge.sitting import Beside
from conformance.sweep.keeping import Keeping
from conformance.sweep.record import Record
from conformance.sweep.share import missing


class SoFar:
    """What was found until now.

    Args:
        wanted: all comparisons that are to be made.
        keeping: where they are kept; None for nowhere. What is there already is found.
        cluster: where they are made; "" for this machine.

    Attributes:
        records: the comparisons that have ended.
        beside: all that is known beside judgements.
        lost: whether a comparison's process died, so that another try is worth while.
        peak: process → the most memory that it had, in bytes.
    """

    def __init__(self, wanted: Sequence[Comparison], keeping: Keeping | None = None, cluster: str = "") -> None:
        self._wanted, self._keeping, self._cluster = wanted, keeping, cluster
        self.records, self.beside, self.lost, self.peak = list[Record](), Beside(), False, dict[str, int]()
        for one in keeping.found if keeping is not None else ():
            if one.comparison in wanted:
                self.records.append(one)
                self.beside.add(one.beside)

    @property
    def left(self) -> list[Comparison]:
        """What has not ended yet."""
        return missing(self._wanted, [one.comparison for one in self.records])

    @property
    def found(self) -> Found:
        return [(one.comparison.target, judgement) for one in self.records for judgement in one.judgements]

    def add(self, one: Comparison, judgements: Sequence[Judgement], beside: Beside, *, lost: bool = False) -> None:
        """A comparison has ended. UsageError where another machine, or what was kept, has other versions."""
        unlike = self.beside.unlike(beside) if self._keeping is not None or self._cluster else ""
        if unlike and self._cluster:
            raise UsageError(
                f"--cluster {self._cluster}: a worker, or what was kept, has {unlike}; install one version"
            )
        if unlike and self._keeping is not None:
            raise UsageError(f"{self._keeping.where}: was begun with {unlike}; give another file, or delete it")
        self.beside.add(beside)
        self.records.append(Record(one, judgements, beside.copied()))
        self.lost = self.lost or lost
        if self._keeping is not None and not lost:
            self._keeping.add(self.records[-1])

    def __enter__(self) -> SoFar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The file goes where all was made and told."""
        if self._keeping is not None:
            self._keeping.close(whole=kind is None and not self.left and not self.lost)
