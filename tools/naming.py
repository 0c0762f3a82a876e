"""How many injected faults are named, by how much the peer shows: every tap, all but masks and RoPE, the least.

    python tools/naming.py [--hidden] [--fault KEY] [--json FILE]

The short lane: each catalogued fault in float32, in its own case; those of the costly cases are left out.
Printed is a row for each way of showing, and the faults whose name is lost or gained against every tap.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.cases.plan import plan_of, required
from conformance.checkpoints import resolve
from conformance.defects.all import FAULTS
from conformance.defects.injection import Fault
from conformance.judge.judge import judge
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.trial import Bench
from conformance.target import Target
from t5g2ref.taps import Tap

HIDDEN = (".mask", ".cos", ".sin")
WAYS: dict[str, Callable[[Tap], bool]] = {
    "every tap": lambda _: True,
    "without masks and RoPE": lambda tap: not tap.exact and "rotary_emb" not in tap.name and "_rope" not in tap.name,
    "the least": required,
}


class Few(FaultyPeer):
    """A peer with a fault that shows some of its taps and keeps the others to itself."""

    def __init__(self, fault: Fault, target: Target, case: Case, shown: Callable[[Tap], bool]) -> None:
        super().__init__(fault.inject, target.backend, later=fault.later)
        self.taps = tuple({tap.name for _, tap in plan_of(target.config, case) if shown(tap)})
        self.open(target)

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        return super()._shown(dump, name, value) if name in self.taps else value


def named(fault: Fault, target: Target, case: Case, shown: Callable[[Tap], bool]) -> tuple[bool, list[str]]:
    """Whether the peer with this fault deviates, and the names that it gets."""
    found = judge(cast(Any, Few(fault, target, case, shown)), target, case, repeat=fault.later, until_culprit=True)
    return found.deviates, sorted({s.defect for s in found.named if s.named})


def right(fault: Fault, names: Sequence[str]) -> bool:
    """Whether its own id is among the names."""
    return fault.id in names


def measured(faults: Iterable[Fault]) -> dict[str, dict[str, tuple[bool, list[str]]]]:
    """Way of showing → fault's key → (whether it deviates, its names)."""
    bench = Bench({target.name: target for target in resolve("tiny", synthetic=False)})
    rows: dict[str, dict[str, tuple[bool, list[str]]]] = {way: {} for way in WAYS}
    for fault in faults:
        target = bench.target(fault)
        (case,) = (case for case in bench.cases(fault) if case.name == fault.case)
        if case.costly:
            continue
        for way, shown in WAYS.items():
            rows[way][fault.key] = named(fault, target, case, shown)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the names as JSON")
    parser.add_argument("--hidden", action="store_true", help="only what shows first at a mask or a table of RoPE")
    parser.add_argument("--fault", action="append", help="a fault's key; several times for several")
    args = parser.parse_args(argv)
    faults = [f for f in FAULTS if f.catalogued and f.named and f.lane == "float32" and not f.spoken]
    faults = [f for f in faults if not args.fault or f.key in args.fault]
    faults = [f for f in faults if f.tap.endswith(HIDDEN) or not args.hidden]
    rows, by_key = measured(faults), {f.key: f for f in faults}
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    whole = {key for key, (_, names) in rows["every tap"].items() if right(by_key[key], names)}
    print("| shown | faults | deviate | its name | with another | another alone |\n|---|--:|--:|--:|--:|--:|")
    for way, found in rows.items():
        mine = {key for key, (_, names) in found.items() if right(by_key[key], names)}
        besides = sum(len(found[key][1]) > 1 for key in mine)
        wrong = sum(bool(names) for key, (_, names) in found.items() if key not in mine)
        seen = sum(deviates for deviates, _ in found.values())
        print(f"| {way} | {len(found)} | {seen} | {len(mine)} | {besides} | {wrong} |")
        for what, keys in (("lost", whole - mine), ("gained", mine - whole)):
            for key in sorted(keys):
                print(
                    f"  {what}: {key}, {'names ' + ' '.join(found[key][1]) if found[key][1] else 'no name'}",
                    file=sys.stderr,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
