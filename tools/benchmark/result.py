"""What a benchmark found: rows of items, each with its sides, the floors under them, and what may be said of them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Literal

from benchmark.ceilings import Beside, Ceilings

Whose = Literal["ours", "transformers", "engine"]
BUSY = 0.05
"""Share of the cores that others take from which times are no findings: who waits at each product for a thread that
does not run loses far more than that."""
LIMITS = {"float64": 1e-2, "float32": 1e-2, "bfloat16": 0.2, "float16": 0.2}
"""Distance of two sides' results from which they cannot be the same computation."""
FAILED = "failed"
"""What a side lacks that raised an error."""


@dataclass(frozen=True)
class Column:
    """One side of the benchmark.

    Args:
        name: as in the tables: a backend of ours, a way to run transformers, or an engine.
        whose: "ours", "transformers", or "engine": another's, of which neither a failure nor another result is a fault
            of this run.
        what: in words.
        absent: why it is not there; "" where it is.
    """

    name: str
    whose: Whose
    what: str
    absent: str = ""


@dataclass(frozen=True)
class Timed:
    """One side of a row.

    Args:
        seconds: of each repeat.
        memory: bytes that one call holds beyond the weights; None where that is not known.
        cpu: CPU seconds of each repeat, of all threads together.
        distance: of its result from that of the row's reference, over the norm of that.
    """

    seconds: list[float]
    memory: int | None
    cpu: list[float] = field(default_factory=list)
    distance: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles over the median."""
        if len(self.seconds) < 2:
            return math.nan
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


@dataclass(frozen=True)
class Row:
    """One item in one dtype, at one length and batch.

    Args:
        source: encoder tokens; 0 where the item has no such length.
        steps: that one repeat decodes; 1 for everything else.
        sides: column → what it took.
        lacks: column → why it has no time here.
        reference: the column whose results the others are held against; a side alone is held to be finite.
        operations, bytes: that a repeat cannot do without; 0 where nothing is counted.
        computing, moving: seconds that these take at the measured rates; NaN where a rate is not known.
        others: share of the cores that other processes took meanwhile; None where that is not known.
        beside: the CPU's rates just before and after; None on a GPU, and where the item is no arithmetic.
    """

    item: str
    dtype: str
    source: int
    batch: int
    steps: int
    sides: dict[str, Timed]
    lacks: dict[str, str] = field(default_factory=dict)
    reference: str = ""
    operations: int = 0
    bytes: int = 0
    computing: float = math.nan
    moving: float = math.nan
    others: float | None = None
    beside: Beside | None = None

    @property
    def name(self) -> str:
        """In words, for a warning."""
        parts = [self.item, *([f"of {self.source} tokens"] if self.source else []), f"in {self.dtype}"]
        return " ".join([*parts, *([f"(batch {self.batch})"] if self.batch > 1 else [])])

    @property
    def floor(self) -> float:
        """Seconds of one repeat that no implementation can be below, at the measured rates; NaN where none is known."""
        return max((x for x in (self.computing, self.moving) if not math.isnan(x)), default=math.nan)

    @property
    def bound(self) -> str:
        """What the floor is made of: "operations", "bytes", or ""."""
        return "" if math.isnan(self.floor) else "operations" if self.floor == self.computing else "bytes"

    @property
    def quiet(self) -> bool:
        """Whether its times may be quoted."""
        return self.others is None or self.others < BUSY

    def agrees(self, name: str) -> bool:
        """Whether that side computed what the reference did."""
        return self.sides[name].distance <= LIMITS[self.dtype]  # false for NaN

    def ratio(self, ours: str, theirs: str) -> float:
        """Median over median; NaN where either is missing, and where they did not compute the same."""
        both = all(name in self.sides and self.agrees(name) for name in (ours, theirs))
        return self.sides[ours].median / self.sides[theirs].median if both else math.nan

    def reached(self, name: str) -> float:
        """The fraction of the floor that a side reaches; NaN where there is none."""
        return self.floor / self.sides[name].median if name in self.sides and self.agrees(name) else math.nan


@dataclass(frozen=True)
class Result:
    """Everything one command measured.

    Args:
        title: checkpoint and lengths.
        machine: the processor or the card, for a caption.
        notes: what a reader must know to trust the numbers.
        columns: the sides, in the order of the tables.
        held: (dtype, column → bytes of its weights).
        remarks: what went otherwise than usual and is no fault: an engine that cannot do an item.
        warnings: faults other than a row that disagrees.
        complete: whether everything that was asked for was tried.
    """

    title: str
    machine: str
    notes: list[str]
    columns: list[Column]
    rows: list[Row]
    ceilings: Ceilings
    held: list[tuple[str, dict[str, int]]]
    versions: dict[str, str]
    remarks: list[str]
    warnings: list[str]
    complete: bool = True

    def named(self, whose: Whose) -> list[str]:
        """The columns of ours, of transformers or of engines."""
        return [column.name for column in self.columns if column.whose == whose]

    @property
    def judged(self) -> list[tuple[Row, str]]:
        """(row, side) of ours and of transformers: what must agree."""
        engines = self.named("engine")
        return [(row, name) for row in self.rows for name in row.sides if name not in engines]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(a column of ours, one of somebody else), whose times make a ratio."""
        others = self.named("transformers") + self.named("engine")
        return [(ours, theirs) for ours in self.named("ours") for theirs in others]

    @property
    def status(self) -> int:
        """0, or 1 where sides do not compute the same, an item failed, or nothing was measured."""
        agree = all(row.agrees(name) for row, name in self.judged)
        return 0 if self.rows and agree and not self.warnings else 1
