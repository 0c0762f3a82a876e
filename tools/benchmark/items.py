"""The items, run on all sides: compared, warmed up, then timed in turns."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch

from benchmark import columns, load, verdict
from benchmark.ceilings import Beside, beside
from benchmark.columns import Side
from benchmark.counts import Lengths
from benchmark.options import LONG, PAIRED, WAYS, Options
from benchmark.ours import Inputs, truth
from benchmark.result import FAILED, Column, Row, Timed
from benchmark.theirs import TorchMeter, Transformers, released
from benchmark.timing import (
    SETTLE,
    Cannot,
    Meter,
    Others,
    PoolMeter,
    ResidentMeter,
    Work,
    fitting,
    interleaved,
    on_cpu,
    waiter,
)
from benchmark.trials import Trials
from conformance.peers.engines.wire import Refused
from conformance.target import Target


class Reporter(Protocol):
    """Where it is said what is being done."""

    def start(self, total: int) -> None: ...

    def say(self, what: str) -> None: ...

    def step(self) -> None: ...


@dataclass
class Bench:
    """One run of the command; what it finds is in `rows`, `held`, `remarks`, `warnings`, as in `Result`.

    Args:
        kept: called whenever something was measured.
    """

    options: Options
    target: Target
    reporter: Reporter
    kept: Callable[[], None] = lambda: None
    rows: list[Row] = field(default_factory=list)
    held: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        backends = self.options.backends
        self.columns: dict[str, Column] = {column.name: column for column in columns.asked(self.options)}
        self.usual = Lengths.of(self.target.config)
        self.wait = waiter(backends[0])
        self.on_cpu = on_cpu(backends[0])
        self._device = torch.device(self.options.device)
        ours = {backend.name: ResidentMeter() if self.on_cpu else PoolMeter(backend) for backend in backends}
        self._meters: dict[str, Meter] = ours  # type: ignore[assignment]
        self.remarks += [f"{column.name}: {column.absent}" for column in self.columns.values() if column.absent]

    @property
    def sources(self) -> tuple[int, ...]:
        """Encoder tokens of the items that have them; a plot wants several."""
        usual = self.usual.source
        return self.options.lengths or ((usual // 4, usual, 4 * usual) if self.options.plot else (usual,))

    @property
    def grid(self) -> list[Lengths]:
        """Every batch and length, in the order of the rows."""
        batches = self.options.batches
        return [replace(self.usual, source=source, batch=batch) for batch in batches for source in self.sources]

    def total(self) -> int:
        """Rows to come."""
        items, dtypes = self.options.items, len(self.options.dtypes)
        paired = sum(self.has(item, lengths) for item in items for lengths in self.grid if item in PAIRED)
        return dtypes * (paired + ("load" in items)) + ("truth" in items) + ("verdict" in items)

    def has(self, item: str, lengths: Lengths) -> bool:
        """Whether an item is measured at these lengths: an image has no tokens."""
        return item in LONG or lengths.source == self.sources[0]

    def meter(self, name: str) -> Meter:
        """The one that sees what this column takes."""
        if name not in self._meters:
            self._meters[name] = next(iter(self._meters.values())) if self.on_cpu else TorchMeter(self._device)
        return self._meters[name]

    def release(self) -> None:
        """Give back what allocators keep: the other sides need the room."""
        for backend in self.options.backends:
            self.meter(backend.name).start()
        released(self._device)

    def attempt(self, what: str, action: Callable[[], object], column: str = "") -> bool:
        """Whether it was done. What fails becomes a warning, or a remark where it is an engine's: the rest of a run is
        not lost with it."""
        self.reporter.say(what)
        try:
            action()
        except Exception as error:
            engine = column in self.columns and self.columns[column].whose == "engine"
            if not engine:
                traceback.print_exc()
            said = f"{what} failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            (self.remarks if engine else self.warnings).append(said)
            return False
        return True

    def paired(self, dtype: Any) -> None:
        """The items that all sides run with their weights in place."""
        items = [item for item in PAIRED if item in self.options.items]
        if not items:
            return
        self.release()
        with self.opened(dtype) as sides:
            self.held.append((dtype, {name: side.weight_bytes for name, side in sides.items()}))
            self.probe(dtype, sides)
            for lengths in self.grid:
                inputs = Inputs.draw(self.target.config, lengths)
                for side in sides.values():
                    side.given(inputs)
                for item in items:
                    if self.has(item, lengths):
                        row = _row(item, dtype, lengths)
                        self.attempt(row.name, partial(self.pair, row, sides))
        self.release()

    @contextmanager
    def opened(self, dtype: Any) -> Iterator[dict[str, Side]]:
        """The columns that are there, by name."""
        sides: dict[str, Side] = {}
        with ExitStack() as stack:
            shared: list[Transformers] = []

            def share() -> None:
                shared.append(Transformers(self.target, self.options.peer(self.options.way, dtype)))
                stack.callback(shared[0].close)

            if self.options.way:
                self.attempt(f"transformers in {dtype}", share)
            for name, opener in columns.openers(self.options, self.target, dtype, *shared).items():
                if not self.columns[name].absent:
                    self.attempt(f"{name} in {dtype}", partial(self._open, name, opener, sides, stack), name)
            try:
                yield sides
            finally:
                sides.clear()

    def _open(self, name: str, opener: Callable[[], Side], sides: dict[str, Side], stack: ExitStack) -> None:
        try:
            sides[name] = opener()
        except Refused as refused:
            why = str(refused).removeprefix(f"{name} ")
            self.columns[name] = replace(self.columns[name], absent=why)
            self.remark(f"{name}: {why}")
            return
        stack.callback(sides[name].close)

    def pair(self, row: Row, sides: dict[str, Side]) -> None:
        """One item by every column that has it."""
        works: dict[str, Work] = {}
        lacks = {name: column.absent or FAILED for name, column in self.columns.items() if name not in sides}

        def ask(name: str) -> None:
            try:
                works[name] = sides[name].work(row.item)
                if note := works[name].note:
                    self.remark(f"{row.item} by {name}: {note}")
            except Cannot as cannot:
                lacks[name] = str(cannot)
                self.remark(f"{row.item} by {name}: {cannot}")

        for name in sides:
            self.attempt(f"{row.name} by {name}", partial(ask, name), name)
        self.row(replace(row, lacks=lacks), works, least=5)

    def remark(self, text: str) -> None:
        """Once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def loads(self) -> None:
        options = self.options
        self.reporter.say("writing a checkpoint to load")
        with load.folder(self.target, options.backends[0]) as path:

            def fresh() -> None:
                self.release()
                load.forget(path)

            for dtype in options.dtypes:
                works = {backend.name: load.ours(path, dtype, backend, fresh) for backend in options.backends}
                if way := options.way:
                    works[way] = load.theirs(path, self.target, options.peer(way, dtype), fresh)
                self.row(Row("load", dtype, 0, 1, 1, {}), works, least=3, cold=True)

    def truths(self) -> None:
        self.release()
        target, lengths = self.target, self.usual
        inputs = Inputs.draw(target.config, lengths)
        works = {
            backend.name: truth(target.config, target.weights, backend, inputs, lengths)
            for backend in self.options.backends
        }
        self.row(Row("truth", "float64", lengths.source, 1, 1, {}), works, least=3)

    def verdicts(self) -> None:
        self.release()
        works = {self.options.backends[0].name: verdict.work()}
        self.row(Row("verdict", "float32", 0, 1, 1, {}), works, least=3, cold=True)

    def row(self, row: Row, works: dict[str, Work], *, least: int, cold: bool = False) -> None:
        """Compare, warm up, time. What is timed `cold` is tried once, everything else twice."""
        order = [*(name for name in works if name in WAYS), *works]  # the first is what the others are held against
        works = {name: works[name] for name in order}
        tried = Trials(row.name, self.attempt, self.meter, self.wait, twice=not cold).all(works)
        if not tried:
            raise RuntimeError("no side could run it")
        short = max(trial.seconds for trial in tried.values()) < 10 * SETTLE  # others hardly disturb a longer one
        settle = SETTLE if short and not cold and self.on_cpu else 0.0
        repeats = fitting(sum(t.seconds + settle for t in tried.values()), self.options.repeats, least)
        repeats = min(repeats, least) if cold else repeats
        self.reporter.say(f"{row.name}, {repeats} times each")
        before, machine = self.rates(row.dtype), Others()
        took = interleaved([works[name] for name in tried], self.wait, repeats, settle)
        share, after = machine.share(), self.rates(row.dtype)
        sides = {
            name: Timed(taken.seconds, trial.memory, taken.cpu, trial.distance)
            for (name, trial), taken in zip(tried.items(), took, strict=True)
        }
        rates = Beside(*zip(before, after, strict=True)) if before and after else None
        sides = {name: sides[name] for name in self.columns if name in sides}
        lacks = row.lacks | {name: FAILED for name in works if name not in sides}
        self.add(replace(row, sides=sides, lacks=lacks, reference=next(iter(tried)), others=share, beside=rates))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        medians = ", ".join(f"{name} {side.median * 1e3:.4g}" for name, side in row.sides.items())
        print(f"{row.name}: {medians} ms", file=sys.stderr, flush=True)
        self.reporter.step()
        self.kept()

    def rates(self, dtype: Any) -> tuple[float, float] | None:
        """The CPU's, now; a GPU's do not change with what the host does."""
        return beside(self.options.backends[0], dtype) if self.on_cpu else None

    def probe(self, dtype: str, sides: dict[str, Side]) -> None:
        if dtype == "float32":
            for name, side in sides.items():
                exact = getattr(side, "exact_products", lambda: True)
                if not exact():
                    self.warnings.append(f"float32 products of {name} lose bits as in TF32, against what was set")


def _row(item: str, dtype: str, lengths: Lengths) -> Row:
    """Before anything is known of it. Its source is 0 where it has none."""
    source, steps = lengths.source if item in LONG else 0, lengths.steps if item == "decode" else 1
    return Row(item, dtype, source, lengths.batch, steps, {})
