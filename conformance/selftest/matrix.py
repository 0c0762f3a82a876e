"""Reports a self-test: the kill matrix, what failed, and what the cases should declare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.text import Text

from conformance.cases.case import Case
from conformance.defects.catalogue import DEFECTS
from conformance.defects.injection import Fault
from conformance.measure.words import in_table, in_words
from conformance.selftest.trial import ELSEWHERE, EXPECTED, NOTHING, SURVIVED, Trial
from conformance.terminal import console

STYLES = {EXPECTED: "green", ELSEWHERE: "yellow", SURVIVED: "bold red", NOTHING: "dim"}
LEGEND = """\
K killed at the expected tap   k killed at another tap   ! has an effect that survived
. no effect on what counts in this case   (blank) not run"""


@dataclass
class Outcome:
    """Everything that a self-test found.

    Args:
        faults, trials: side by side, one trial for each fault.
        cases: the columns of the matrix.
        legal: (name, lane, target, case, what was found) of every legal run; "" where it conforms.
        whole: whether every fault was run in all cases that declare it, so that what they declare can be checked.
        matrix: whether every fault was run in every case, so that it is known what they could declare.
    """

    faults: list[Fault] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    legal: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    whole: bool = True
    matrix: bool = False
    interrupted: bool = False

    def pairs(self) -> Iterator[tuple[Fault, Trial]]:
        yield from zip(self.faults, self.trials, strict=True)

    def failures(self) -> list[str]:
        """Everything that the judge got wrong, a line each."""
        found = [line for fault, trial in self.pairs() for line in wrong(fault, trial)]
        found += [f"legal run {n} in {lane} on {t}, case {c}: {what}" for n, lane, t, c, what in self.legal if what]
        return found + (self.undeserved() if self.whole else [])

    def undeserved(self) -> list[str]:
        """Defects that a case declares and that are not killed there, a line each."""
        lines = []
        for case in self.cases:
            for defect in case.exposes:
                cells = self._cells(case.name, defect)
                if not cells:
                    continue
                if not any(cell in (EXPECTED, ELSEWHERE) for cell in cells.values()):
                    lines.append(f"case {case.name} declares {defect}, of which no variant is killed there")
                lines += [
                    f"case {case.name} declares {defect}, but {key} survives there"
                    for key, cell in cells.items()
                    if cell == SURVIVED
                ]
        return lines

    def undeclared(self) -> dict[str, list[str]]:
        """Case → ids of defects that are killed there, though it does not declare them."""
        found = {}
        for case in self.cases:
            killed = {f.id for f, t in self.pairs() if f.catalogued and t.cells.get(case.name) in (EXPECTED, ELSEWHERE)}
            found[case.name] = sorted(killed - set(case.exposes))
        return {name: ids for name, ids in found.items() if ids}

    def rounding(self) -> list[str]:
        """Faults whose effect passed for rounding, in cases that do not declare the defect."""
        declared = {case.name: case.exposes for case in self.cases}
        return [
            f"{fault.key} in {case}"
            for fault, trial in self.pairs()
            for case, cell in trial.cells.items()
            if cell == SURVIVED and fault.id not in declared.get(case, ()) and case != fault.case
        ]

    def _cells(self, case: str, defect: str) -> dict[str, str]:
        return {f.key: t.cells[case] for f, t in self.pairs() if f.id == defect and case in t.cells}

    def last_line(self) -> str:
        failures, legal = self.failures(), len(self.legal)
        if self.interrupted:
            return f"VERDICT: INCOMPLETE - interrupted after {len(self.trials)} faults"
        if failures:
            return f"VERDICT: DEVIATES - the judge failed {len(failures)} times, first: {failures[0]}"
        near = sum(bool(f.near) for f in self.faults)
        told = f"{len(self.trials) - near} of {len(self.faults) - near} faults killed at the right tap"
        beside = f", none of {near} near ones called by its neighbour's name" if near else ""
        return f"VERDICT: CONFORMS - {told}{beside}, none of {legal} legal runs was blamed"

    def near(self) -> list[str]:
        """By lane: how many faults near to a catalogued one were found, and those that were not."""
        lines = []
        for lane in dict.fromkeys(f.lane for f in self.faults if f.near):
            of = [(f, t) for f, t in self.pairs() if f.near and f.lane == lane]
            hidden = [f.id for f, t in of if t.cells.get(f.case) == SURVIVED]
            lines.append(f"near to a catalogued one, {lane}: {len(of) - len(hidden)} of {len(of)} found")
            if hidden:
                lines.append(f"  within the rounding: {' '.join(hidden)}")
        return lines

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.last_line(),
            "failures": self.failures(),
            "seconds": self.seconds,
            "faults": [
                {"id": f.id, "title": f.title, "case": f.case, "lane": f.lane, "expected": [f.tap, f.status, f.call]}
                | t.as_dict()
                for f, t in self.pairs()
            ],
            "legal": [dict(zip(("name", "lane", "target", "case", "found"), run, strict=True)) for run in self.legal],
            "undeclared": self.undeclared() if self.matrix else None,
            "seen_as_rounding": self.rounding(),
        }


def wrong(fault: Fault, trial: Trial) -> list[str]:
    """What the judge got wrong about a fault in its own case, a line each."""
    at = f"{fault.key} in {fault.case}"
    if not trial.injected:
        return [f"{at} was not injected: the peer shows the same with it and without"]
    right, given = {fault.id, *fault.alike}, set(trial.named)
    lines = [f"{at}: named {name}, which it is not" for name in sorted(given - right)]
    if fault.near:
        return lines
    if trial.culprit is None or trial.cells.get(fault.case) == SURVIVED:
        return [f"{at} survived"]
    if not fault.expects(*trial.culprit):
        return [f"{at}: expected {(fault.tap, fault.status, fault.call)}, found {trial.culprit}"]
    if fault.catalogued and fault.named and not given & right:
        lines.append(f"{at}: not named")
    return lines


def show(outcome: Outcome) -> None:
    """Print the matrix and the summary."""
    put = partial(console().print, highlight=False, soft_wrap=True)
    put(_numbers(outcome.cases))
    put(_header(outcome.cases))
    for fault, trial in outcome.pairs():
        if not fault.near:
            put(_row(fault, trial, outcome.cases))
    put(f"\n{LEGEND}\n")
    for line in summary(outcome):
        put(Text(line))


NAMES = 26  # columns of a fault's name


def _numbers(cases: Iterable[Case]) -> Text:
    lines = [f"{i:2} {case.name:20}" for i, case in enumerate(cases, 1)]
    columns = [lines[i : i + 4] for i in range(0, len(lines), 4)]
    return Text("cases\n" + "\n".join("  ".join(column).rstrip() for column in columns) + "\n")


def _header(cases: list[Case]) -> Text:
    """Numbers of two digits stand one above the other."""
    numbers = range(1, len(cases) + 1)
    tens = "".join(f"{i // 10:2}" if i > 9 else "  " for i in numbers)
    ones = "".join(f"{i % 10:2}" for i in numbers)
    return Text(f"{'':{NAMES}}{tens}\n{'fault':{NAMES}}{ones}  named", style="bold")


def _row(fault: Fault, trial: Trial, cases: list[Case]) -> Text:
    row = Text(f"{fault.key:{NAMES}}", style="bold red" if wrong(fault, trial) else "")
    for case in cases:
        cell = trial.cells.get(case.name, " ")
        row.append(f" {cell}", style=STYLES.get(cell, ""))
    row.append(f"  {' '.join(trial.named)}", style="dim")
    return row


def summary(outcome: Outcome) -> list[str]:
    """The result in a few lines."""
    injected = {f.id for f in outcome.faults if f.catalogued}
    counted = [(f, t) for f, t in outcome.pairs() if not f.near]
    own = sum(not f.catalogued for f, _ in counted)
    killed = sum(not wrong(f, t) for f, t in counted)
    lines = [
        f"{len(counted)} faults: {len(injected)} of {len(DEFECTS)} of the catalogue in "
        f"{len(counted) - own} variants, and {own} of our own; {killed} killed as expected",
        *outcome.near(),
        f"{sum(bool(t.named) for t in outcome.trials)} named; {len(outcome.legal)} legal runs; {outcome.seconds:.0f} s",
        *(f"seen as rounding, where no case declares it: {line}" for line in outcome.rounding()),
    ]
    if outcome.matrix and (more := outcome.undeclared()):
        lines += ["killed though not declared:", *(f"  {case}: {' '.join(ids)}" for case, ids in more.items())]
    return [*lines, *(f"FAILED  {line}" for line in outcome.failures())]


def explained(fault: Fault, trial: Trial) -> str:
    """One fault: what it is, what was expected and what was found."""
    found = "nothing" if trial.culprit is None else "{} ({}, call {})".format(*trial.culprit)
    taps = [f"    {tap} (call {call}): {status} {in_table(judged)}" for tap, call, status, judged in trial.failing]
    problems = wrong(fault, trial)
    return "\n".join(
        [
            f"{fault.key}  {fault.title}" + (f"   [{DEFECTS[fault.id]}]" if fault.id in DEFECTS else ""),
            f"  put in by   {fault.inject.how}",
            f"  case        {fault.case}, {fault.lane}, on {fault.target}",
            f"  expected    {fault.tap} ({fault.status}, call {fault.call})",
            f"  found       {found}, ratio {in_words(trial.ratio)}"
            + (f"; it raised {trial.error}" if trial.error else ""),
            f"  named       {' '.join(trial.named) or 'nothing'}",
            *(f"  WRONG       {problem}" for problem in problems),
            f"  failing taps: {len(taps)}",
            *taps,
        ]
    )
