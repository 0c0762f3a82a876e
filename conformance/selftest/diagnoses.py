"""Runs the trials of black boxes, in this process or in several, and says in figures how good the diagnosis is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from conformance.checkpoints import BUNDLED, resolve
from conformance.defects.injection import Fault
from conformance.exchange.plain import decoded
from conformance.selftest.black_box import AMONG, GOOD, HIDDEN, MISSED, SAME, WRONG, BlackBoxes, Told, singles
from conformance.sweep.engine import Engine
from conformance.sweep.task import Task
from conformance.target import Target

LEAST = 0.9  # of the pairs, the part that has to be named completely
Job = tuple[str, ...]


@dataclass
class Diagnoses:
    """What came of the trials.

    Args:
        alone, pairs: the trials of one fault, and of two.
        hiding: how many pairs did not count, since one fault hid the other.
    """

    alone: list[Told] = field(default_factory=list)
    pairs: list[Told] = field(default_factory=list)
    hiding: int = 0
    seconds: float = 0.0

    def failures(self) -> list[str]:
        """What the diagnosis got wrong, a line each."""
        wrong = [t.line() for t in (*self.alone, *self.pairs) if t.what == WRONG]
        wrong += [t.line() for t in self.alone if t.what == MISSED]
        named = sum(t.what in GOOD for t in self.pairs)
        if self.pairs and not named >= LEAST * len(self.pairs):
            wrong.append(f"{named} of {len(self.pairs)} pairs are named completely, expected {LEAST:.0%}")
        return wrong

    def lines(self) -> list[str]:
        """The figures, and what is not simply named."""
        told = [t for t in (*self.alone, *self.pairs) if t.what in (AMONG, SAME, HIDDEN, MISSED)]
        slowest = max((t.seconds for t in (*self.alone, *self.pairs)), default=0.0)
        counted = [
            f"{len(trials)} {what}: {', '.join(f'{n} {word}' for word, n in Counter(t.what for t in trials).items())}"
            for what, trials in (("faults through logits alone", self.alone), ("pairs of faults", self.pairs))
            if trials
        ]
        hiding = [f"{self.hiding} more pairs did not count: one of the two explains all, or nothing shows"]
        return [
            *(t.line() for t in told),
            *counted,
            *(hiding if self.hiding else []),
            f"the longest diagnosis took {slowest:.0f} s, all of it {self.seconds:.0f} s",
            *(f"FAILED  {line}" for line in self.failures()),
        ]

    def last_line(self) -> str:
        """The verdict's line."""
        wrong = len(self.failures())
        return "VERDICT: " + (f"DEVIATES - {wrong} failures" if wrong else "CONFORMS") + " (diagnosis of black boxes)"

    def as_json(self) -> dict[str, Any]:
        parts = {"alone": self.alone, "pairs": self.pairs}
        told = {name: [asdict(t) for t in trials] for name, trials in parts.items()}
        return told | {"hiding": self.hiding, "seconds": self.seconds, "failures": self.failures()}


class _Bench:
    """The bundled checkpoints, and black boxes on each as they are asked for."""

    def __init__(self, ckpt: str) -> None:
        self._targets = {target.name: target for target in resolve(ckpt, synthetic=False)}
        self._boxes: dict[str, BlackBoxes] = {}

    def told(self, job: Job) -> Told | None:
        kind, what = job[:2]
        first = next(iter(self._targets.values()))
        if kind == "pair":
            boxes = self._of("", first)
            return boxes.told(int(what), *boxes.pairs(int(job[2]))[int(what)])
        number, fault = next((i, f) for i, f in enumerate(singles()) if f.key == what)
        return self._of(fault.key, self._target(fault, first)).told(number, fault)

    def _target(self, fault: Fault, first: Target) -> Target:
        """The checkpoint that a fault is tried on, with the configuration that it gives."""
        target = self._targets.get(fault.target, first)
        config = fault.given(target.config)
        return target if config == target.config else replace(target, config=config)

    def _of(self, key: str, target: Target) -> BlackBoxes:
        """Those of a checkpoint; of one with a configuration of its own, for this fault alone."""
        if target not in self._targets.values():
            return BlackBoxes(target)
        if target.name not in self._boxes:
            self._boxes[target.name] = BlackBoxes(target)
        return self._boxes[target.name]


def _do(bench: _Bench, job: Job) -> Told | None:
    return bench.told(job)


def _checked(job: Job, raw: Any) -> Told | None:
    told: Told | None = decoded(Told | None, raw, " ".join(job))
    return told


def _results(ckpt: str, jobs: Sequence[Job], engine: Engine) -> Iterator[Told | None]:
    """What came of the jobs, as they come."""
    if engine.here(jobs):
        bench = _Bench(ckpt)
        yield from (bench.told(job) for job in jobs)
    else:
        yield from (result for _, result in engine.done(Task(_Bench, (ckpt,), _do, checked=_checked), jobs))


def run(faults: Sequence[Fault], pairs: int, engine: Engine, into: Diagnoses, step: Callable[[str], None]) -> None:
    """Try each fault alone, then so many pairs that count; what was found goes into `into` as it comes."""
    ckpt = next(iter(BUNDLED))
    jobs: list[Job] = [("fault", fault.key) for fault in faults]
    jobs += [("pair", str(i), str(pairs)) for i in range(pairs + pairs // 2)]
    for told in _results(ckpt, jobs, engine):
        if told is None:
            into.hiding += 1
        elif len(told.keys) == 1:
            into.alone.append(told)
        elif len(into.pairs) < pairs:
            into.pairs.append(told)
        step("" if told is None else " + ".join(told.keys))
        if len(into.alone) == len(faults) and len(into.pairs) == pairs:
            return
