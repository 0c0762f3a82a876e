"""Which comparisons each of several machines makes: `--shard I/N`, without any of them speaking to another.

The cut follows from the plan alone. Every comparison is in one share, and none has to be beside another: the patterns
and sums over many are made of all of them by `merge`. So the exact lane of a peer is cut like its cases.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from conformance.cases.case import Case
from conformance.errors import UsageError
from conformance.judge.comparisons import Comparison
from conformance.report.terms import Work
from t5g2ref.dtypes import HALF

MOST = 10_000  # shares
CALL = 20  # tokens that cost as much as a call, and as a case, do by themselves; measured on a tiny checkpoint
HALVES = 1.5  # times as long as in float32
EXACTLY = 200  # tokens that cost as much as the exact lane


class Share(NamedTuple):
    """The I-th of N shares."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Share(1, 1)


def parse(text: str) -> Share:
    """The share that `I/N` names. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text, re.ASCII)
    share = Share(int(match[1]), int(match[2])) if match else Share(0, 0)
    if not 1 <= share.number <= share.of <= MOST:
        raise UsageError(f"--shard {text[:40]}: expected I/N with I from 1 to N, and N at most {MOST}")
    return share


def part(work: Work, share: Share) -> list[Comparison]:
    """The comparisons of a share, in the order of a report. The longest go first to whoever has least to do."""
    costs = [cost(work, one) for one in work.every]
    loads, mine = [0.0] * share.of, list[int]()
    for place in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(share.of), key=lambda i: (loads[i], i))
        loads[least] += costs[place]
        if least == share.number - 1:
            mine.append(place)
    return [work.every[place] for place in sorted(mine)]


def cost(work: Work, one: Comparison) -> float:
    """About how long a comparison takes, in tokens: whole numbers and halves, the same on every machine."""
    _, case = work.of(one)
    half = next(peer.dtype for peer in work.terms.peers if peer.name == one.peer) in HALF
    return (HALVES if half else 1.0) * (EXACTLY if case is None else _tokens(case))


def _tokens(case: Case) -> int:
    given = sum(int(run.input_ids.size + run.decoder_input_ids.size) for run in case.runs)
    asked = sum(prompt.rows * (int(prompt.input_ids.shape[1]) + prompt.new) for prompt in case.prompts)
    steps = len(case.calls) + sum(prompt.new for prompt in case.prompts)
    return given + asked + CALL * (1 + steps)


def missing(wanted: Sequence[Comparison], found: Sequence[Comparison]) -> list[Comparison]:
    """What was wanted and is not there."""
    there = set(found)
    return [one for one in wanted if one not in there]
