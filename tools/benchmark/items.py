"""The items, run on both sides: compared, warmed up, then timed in turns."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmark import load, verdict
from benchmark.ceilings import Beside, beside
from benchmark.counts import Lengths
from benchmark.options import PAIRED, Options
from benchmark.ours import Inputs, Ours, truth
from benchmark.report import Row, Timed
from benchmark.theirs import Theirs, TorchMeter, released
from benchmark.timing import (
    SETTLE,
    Meter,
    Others,
    PoolMeter,
    ResidentMeter,
    Work,
    distance,
    fitting,
    interleaved,
    tried,
    waiter,
)
from conformance.target import Target
from t5g2ref.backend import NUMPY


@dataclass
class Bench:
    """One run of the command; what it finds is in `rows`, `held` (dtype, bytes of weights on each side), `warnings`."""

    options: Options
    target: Target
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    held: list[tuple[str, int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        config, backend = self.target.config, self.options.backend
        self.lengths = Lengths.of(config)
        self.inputs = Inputs.draw(config, self.lengths)
        self.wait = waiter(backend)
        self.meter: Meter = ResidentMeter() if backend is NUMPY else PoolMeter(backend)

    def release(self) -> None:
        """Give back what our allocator keeps: the other side needs the room."""
        self.meter.start()

    def attempt(self, what: str, action: Callable[[], object]) -> None:
        """What fails becomes a warning: the rest of a long run is not lost with it."""
        try:
            action()
        except Exception as error:
            traceback.print_exc()
            self.warnings.append(f"{what} failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")

    def paired(self, dtype: Any) -> None:
        """The items that both sides run with their weights in place."""
        items = [item for item in PAIRED if item in self.options.items]
        if not items:
            return
        self.say(f"both models in {dtype}")
        self.release()
        theirs = Theirs(self.target, self.options.peer(dtype), self.inputs)
        try:
            ours = Ours(self.target.config, self.target.weights, dtype, self.options.backend, self.inputs)
            self.held.append((dtype, ours.weight_bytes, theirs.weight_bytes))
            self.probe(dtype, ours, theirs)
            for item in items:
                self.attempt(f"{item} in {dtype}", partial(self.pair, item, dtype, ours, theirs))
        finally:
            theirs.close()

    def pair(self, item: str, dtype: str, ours: Ours, theirs: Theirs) -> None:
        self.row(item, dtype, [ours.work(item), theirs.work(item)], self.meters(theirs.device), least=5)

    def loads(self) -> None:
        options = self.options
        if "load" not in options.items:
            return
        self.say("writing a checkpoint to load")
        device, backend = torch.device(options.device), options.backend
        with load.folder(self.target, backend) as path:

            def fresh() -> None:
                self.release()
                released(device)
                load.forget(path)

            for dtype in options.dtypes:
                theirs = load.theirs(path, self.target, options.peer(dtype), fresh)
                works = [load.ours(path, dtype, backend, fresh), theirs]
                self.row("load", dtype, works, self.meters(device), least=3, cold=True)

    def truths(self) -> None:
        if "truth" in self.options.items:
            self.release()
            target = self.target
            work = truth(target.config, target.weights, self.options.backend, self.inputs, self.lengths)
            self.row("truth", "float64", [work], [self.meter], least=3)

    def row(
        self, item: str, dtype: str, works: list[Work], meters: list[Meter], *, least: int, cold: bool = False
    ) -> None:
        """Compare, warm up, time. What is timed `cold` is tried once, everything else twice."""
        self.say(f"{item} {dtype}")
        trials = first = [tried(work, meter, self.wait) for work, meter in zip(works, meters, strict=True)]
        if not cold:
            trials = [tried(work, meter, self.wait) for work, meter in zip(works, meters, strict=True)]
        short = max(trial.seconds for trial in trials) < 10 * SETTLE  # a longer one hardly feels what others leave
        settle = SETTLE if short and not cold and self.options.backend is NUMPY else 0.0
        repeats = fitting(sum(trial.seconds + settle for trial in trials), self.options.repeats, least)
        repeats = min(repeats, least) if cold else repeats
        before, machine = self.rates(dtype), Others()
        sides = interleaved(works, self.wait, repeats, settle)
        share, after = machine.share(), self.rates(dtype)
        ours, *others = [Timed(side.seconds, trial.memory, side.cpu) for side, trial in zip(sides, trials, strict=True)]
        apart = distance(*(trial.sample for trial in first)) if others else finite(first[0].sample)
        tokens = self.lengths.steps if item == "decode" else 1
        rates = Beside(*zip(before, after, strict=True)) if before and after else None
        theirs = others[0] if others else None
        self.rows.append(Row(item, dtype, tokens, ours, theirs, apart, others=share, beside=rates))
        medians = " / ".join(f"{side.median * 1e3:.4g}" for side in (ours, *others))
        print(f"{item} {dtype}: {medians} ms, distance {apart:.1e}", file=sys.stderr, flush=True)

    def rates(self, dtype: Any) -> tuple[float, float] | None:
        """The CPU's, now; a GPU's do not change with what the host does."""
        return beside(self.options.backend, dtype) if self.options.backend is NUMPY else None

    def verdicts(self) -> None:
        if "verdict" in self.options.items:
            self.release()
            self.row("verdict", "float32", [verdict.work()], [self.meter], least=3, cold=True)

    def meters(self, device: torch.device) -> list[Meter]:
        return [self.meter, self.meter if self.options.backend is NUMPY else TorchMeter(device)]

    def probe(self, dtype: str, ours: Ours, theirs: Theirs) -> None:
        if dtype == "float32":
            for name, side in (("ours", ours), ("transformers", theirs)):
                if not side.exact_products():
                    self.warnings.append(f"float32 products of {name} lose bits as in TF32, against what was set")


def finite(sample: np.ndarray[Any, Any]) -> float:
    """0, or NaN where a number is not finite: the distance of a result that has no counterpart."""
    return 0.0 if np.isfinite(sample).all() else math.nan
