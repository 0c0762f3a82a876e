"""What a campaign says: a table by class, then every finding with the command that repeats it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from conformance.terminal import console
from fuzzing.campaign import Result
from fuzzing.tries import ACCEPTED, FALSE, FOUND, HANG, MEMORY, MIB, REFUSED, TRACEBACK

ENDS = (ACCEPTED, REFUSED, TRACEBACK, HANG, MEMORY, FALSE)
HEADS = ("accepted", "refused", "tracebacks", "hangs", "memory", "false passes")
SHOWN = 40  # findings that are printed


@dataclass
class Tally:
    """How the tries of a class ended; the slowest in seconds, the largest refusal in bytes above the idle process."""

    tries: int = 0
    ends: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDS, 0))
    slowest: float = 0.0
    largest: int = 0

    def add(self, result: Result) -> None:
        outcome = result.outcome
        self.tries += 1
        self.ends[outcome.end] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        if outcome.end in (REFUSED, MEMORY):
            self.largest = max(self.largest, outcome.peak)


def tallies(results: Sequence[Result], names: Sequence[str]) -> dict[str, Tally]:
    """A tally of each class, and one of all."""
    out = {name: Tally() for name in (*names, "all")}
    for result in results:
        out[result.kind].add(result)
        out["all"].add(result)
    return out


def found(results: Sequence[Result]) -> list[Result]:
    return sorted((r for r in results if r.outcome.end in FOUND), key=lambda r: (r.kind, r.outcome.end, r.number))


def show(results: Sequence[Result], names: Sequence[str]) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for head in ("tries", *HEADS, "slowest", "largest"):
        table.add_column(head, justify="right")
    for name, tally in tallies(results, names).items():
        figures = [str(tally.tries), *(str(tally.ends[end]) for end in ENDS)]
        table.add_row(name, *figures, f"{tally.slowest:.2f} s", f"{tally.largest / MIB:.1f} MiB")
    out.print(table)
    wrong = found(results)
    for result in wrong[:SHOWN]:
        text = result.outcome.text.strip()
        out.print(f"\n{result.outcome.end.upper()} {escape(result.command)}\n{escape(text[-900:])}", highlight=False)
    if len(wrong) > SHOWN:
        out.print(f"\nand {len(wrong) - SHOWN} findings more: --json FILE has all of them")


def as_json(results: Sequence[Result], names: Sequence[str], facts: dict[str, Any]) -> str:
    """The figures and the findings; accepted and refused tries are only counted."""
    findings = [
        {"command": r.command, "class": r.kind, "number": r.number, **asdict(r.outcome)} for r in found(results)
    ]
    figures = {name: asdict(tally) for name, tally in tallies(results, names).items()}
    return json.dumps({**facts, "classes": figures, "findings": findings}, indent=2) + "\n"
