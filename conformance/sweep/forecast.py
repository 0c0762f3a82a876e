"""How long a streamed run takes and what memory, said before it: one product of each run is made and timed.

Nearly all of the time goes into products with the weights, and into making or reading these anew for every pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import cast

import numpy as np

from conformance.cases.case import Case, Run
from conformance.cases.plan import plan_of
from conformance.cases.prompt import Prompt
from conformance.checkpoints import GIB
from conformance.judge.comparisons import Comparison
from conformance.oracle.run_case import legal
from conformance.oracle.worst_case import ceiling
from conformance.report.terms import Work
from conformance.sweep.room import LIBRARIES, TABLE, bytes_for
from conformance.target import Target
from t5g2ref.config import Config
from t5g2ref.dtypes import DType
from t5g2ref.numerics import EXACT, SDPA, Array, Numerics
from t5g2ref.on_demand import layer_of

ANCHORS = 2
AGAIN = 3  # more runs of a peer where a case is repeated: two inputs between, and the case
STACKS = ("encoder.vision_tower.", "encoder.text_model.", "decoder.")
STARTING = 5.0  # seconds until a peer is there, about
TAP = 5e-3  # seconds for each tap beside the products, about
PROBES = 30  # passes of a peer in the exact lane, about


@dataclass(frozen=True)
class Forecast:
    """Seconds, and the most bytes of memory."""

    seconds: float
    peak: int

    def __str__(self) -> str:
        return f"{_long(self.seconds)} and {self.peak / GIB:.1f} GiB"

    def beside(self, seconds: float, peak: int) -> str:
        """A note that holds it against what the run took."""
        return f"predicted before the run: {self}; it took {Forecast(seconds, peak)}"


def _long(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def forecast(work: Work, left: Iterable[Comparison]) -> Forecast | None:
    """Of the comparisons that are left; None where nothing is streamed."""
    streamed = [target for target in work.targets if target.streamed]
    if not streamed:
        return None
    types = {peer.name: cast(DType, peer.dtype) for peer in work.terms.peers}
    seconds, peak, clocks = STARTING, LIBRARIES, dict[tuple[str, DType], _Clock]()
    for one in left:
        target, case = work.of(one)
        if target.streamed:
            key = target.name, types[one.peer]
            clock = clocks.setdefault(key, _Clock(target, types[one.peer]))
            seconds += clock.exactly() if case is None else clock.of(case, 1 + AGAIN * work.terms.repeat)
            peak = max(peak, bytes_for(target, case, types[one.peer]))
    return Forecast(seconds, peak)


class _Clock:
    """Times of a checkpoint's layers in one type; each is measured once."""

    def __init__(self, target: Target, dtype: DType) -> None:
        self._target, backend = target, target.backend
        self._controls = [Numerics(dtype, profile, backend) for profile in legal(dtype)]
        self._all = [Numerics("float64", EXACT, backend, dtype), *self._controls, ceiling(backend, dtype)]
        self._peer = Numerics("float32", SDPA, backend)
        self._layers = {stack: list(_layers(target, stack)) for stack in STACKS}
        self._known: dict[tuple[str, int, bool], float] = {}
        self._reading: dict[str, float] = {}

    def of(self, case: Case, runs: int) -> float:
        """Seconds for a case which the peer runs so often."""
        parts = [part for run in case.runs for part in _parts(run, self._target.config)]
        parts += [part for prompt in case.prompts for part in _generated(prompt)]
        reading = sum(self._read(stack) for stack, _ in parts if stack in STACKS)
        ours = ANCHORS * sum(self._products(stack, rows, ours=True) for stack, rows in parts)
        theirs = runs * sum(self._products(stack, rows, ours=False) for stack, rows in parts)
        taps = TAP * len(plan_of(self._target.config, case))
        return (ANCHORS + runs) * reading + ours + theirs + taps

    def exactly(self) -> float:
        """Seconds for the exact lane."""
        return PROBES * sum(self._read(stack) + self._products(stack, 8, ours=False) for stack in STACKS)

    def _read(self, stack: str) -> float:
        """Seconds to make or read all layers of a stack."""
        layers = self._layers[stack]
        if layers and stack not in self._reading:
            self._target.weights[layers[0][0]]  # so that what follows is not the first
            self._reading[stack] = _seconds(lambda: self._target.weights[layers[-1][0]]) * len(layers)
        return self._reading.get(stack, 0.0)

    def _products(self, stack: str, rows: int, *, ours: bool) -> float:
        """Seconds of all products of a stack, or with the table, for so many rows."""
        key = stack, rows, ours
        if key not in self._known:
            self._known[key] = self._measured(stack, rows, self._all if ours else [self._peer])
        return self._known[key]

    def _measured(self, stack: str, rows: int, all_of_them: Iterable[Numerics]) -> float:
        layers = self._layers.get(stack, [[TABLE]])
        if not layers or not rows:
            return 0.0
        rounded = self._target.rounded(self._controls[0].dtype)
        values = {name: rounded[name] for name in layers[-1]}
        largest = max(values.values(), key=lambda value: (value.ndim == 2, value.size))
        sample = largest[: max(1, (1 << 26) // largest.shape[1])]
        share: float = len(layers) * sum(prod(value.shape) for value in values.values()) / sample.size
        x = np.ones((1, rows, sample.shape[1]))
        return share * sum(_seconds(partial(_product, nx, x, sample)) for nx in all_of_them)


def _layers(target: Target, stack: str) -> Iterator[list[str]]:
    """The names of each layer of a stack."""
    found: dict[str, list[str]] = {}
    for name in target.weights:
        if name.startswith(stack) and (layer := layer_of(name)):
            found.setdefault(layer, []).append(name)
    yield from found.values()


def _parts(run: Run, config: Config) -> Iterator[tuple[str, int]]:
    """(stack, or "table", and rows) of each time that it is gone through."""
    if run.pixel_values is not None:
        yield STACKS[0], len(run.pixel_values) * config.vision.patches_per_side**2
    yield STACKS[1], run.input_ids.size
    if run.decoder_input_ids.size:
        yield STACKS[2], run.input_ids.size // 4  # keys and values of the encoder's output
    for first, last in run.bounds:
        rows = len(run.decoder_input_ids) * (last - first)
        if rows:
            yield STACKS[2], rows
            yield "table", len(run.decoder_input_ids) * min(last - first, run.logits_to_keep or rows)


def _generated(prompt: Prompt) -> Iterator[tuple[str, int]]:
    """The same of a generation that makes as many ids as it may."""
    rows = len(prompt.input_ids) * prompt.beams
    yield STACKS[1], prompt.input_ids.size
    yield from [(STACKS[2], rows), ("table", rows)] * prompt.new


def _product(nx: Numerics, x: Array, weight: Array) -> None:
    nx.linear(nx.array(x), weight)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
