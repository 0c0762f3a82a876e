"""The command `selftest`: puts faults into the reference as a peer, one at a time, and demands that each is found.

A judge that cannot fail is no judge. Every fault of `defects/` is judged in its own case, where verdict, culprit and
name have to be right. Every case that says it exposes a defect has to show it, and every legal run has to conform.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from conformance.cases import catalogue as case_list
from conformance.cases import generating, pictured
from conformance.cases.case import Case
from conformance.checkpoints import BUNDLED
from conformance.commands import black_boxes
from conformance.commands import options as shared
from conformance.commands.options import LANES as NAMES
from conformance.defects import all as catalogue
from conformance.defects.injection import Fault
from conformance.errors import UsageError
from conformance.progress import Reporter, reporting
from conformance.report.files import FILES, check_writable, write_one
from conformance.selftest import matrix
from conformance.selftest.legal import LEGAL
from conformance.selftest.matrix import Outcome
from conformance.selftest.workers import Given, Job, results
from conformance.sweep.engine import Engine
from t5g2ref import bundled
from t5g2ref.config import Config

LANES = tuple(NAMES.values())


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--fault", action="append", metavar="ID", help="only this one, in detail: D24 or 'X*'; repeatable"
    )
    parser.add_argument(
        "--matrix", action="store_true", help="each fault in every case, not in those alone that say they expose it"
    )
    parser.add_argument("--lane", type=_lane, metavar="LANE", help=f"one alone: {', '.join(NAMES)}")
    black_boxes.add_options(parser)
    shared.backend(parser)
    shared.checkpoint(parser)
    shared.jobs(parser, "one a core; one on a device")
    shared.cluster(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help=FILES["json"])
    shared.progress(parser)
    shared.defaults(parser)


def _lane(name: str) -> str:
    """The lane's type. ArgumentTypeError for another name, with those that the help has."""
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {', '.join(NAMES)})")
    return NAMES[name]


def main(options: argparse.Namespace) -> int:
    """Run the self-test; returns 0 where the judge did all that it should, 1 where not, 3 after an interruption."""
    check_writable("--json", options.json)
    chosen = [f for f in catalogue.find(options.fault or []) if options.lane in (None, f.lane)]
    if not chosen:
        raise UsageError(f"{_asked(options)}: there is no such fault; see `list faults`")
    if options.pairs is not None and not options.black_box:
        raise UsageError(f"--pairs {options.pairs}: it goes with --black-box")
    if options.black_box:
        return black_boxes.main(options, [f.key for f in chosen] if options.fault else [])
    began, outcome = time.perf_counter(), Outcome(whole=not options.fault and not options.lane, matrix=options.matrix)
    with reporting(quiet=options.no_progress) as reporter:
        try:
            _run(options, chosen, outcome, reporter)
        except KeyboardInterrupt:
            outcome.interrupted = True
    outcome.seconds = time.perf_counter() - began
    try:
        _tell(options, outcome)
    except (OSError, KeyboardInterrupt):  # a reader who has gone must not cost the file
        _keep(options, outcome)
        raise
    _keep(options, outcome)
    if outcome.interrupted:
        return 3
    return 1 if outcome.failures() else 0


def _asked(options: argparse.Namespace) -> str:
    """The options that choose faults, as they were given."""
    lanes = [f"--lane {name}" for name, dtype in NAMES.items() if dtype == options.lane]
    return " ".join([*(f"--fault {key}" for key in options.fault or ()), *lanes])


def _tell(options: argparse.Namespace, outcome: Outcome) -> None:
    if options.fault:
        for fault, trial in outcome.pairs():
            print(matrix.explained(fault, trial), end="\n\n")
    else:
        matrix.show(outcome)
    print(outcome.last_line(), flush=True)


def _keep(options: argparse.Namespace, outcome: Outcome) -> None:
    if options.json is not None:
        text = json.dumps(_plain(outcome.as_json()), indent=1, allow_nan=False)
        write_one("--json", options.json, text + "\n")


def _plain(value: Any) -> Any:
    """The value, with text in place of numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


def _run(options: argparse.Namespace, chosen: list[Fault], outcome: Outcome, reporter: Reporter) -> None:
    """Run all jobs and put what they found into the outcome, faults in the order of the catalogue."""
    everywhere = options.ckpt in BUNDLED and not options.synthetic and not options.fault
    where = ("all" if options.matrix else "declared") if everywhere else "own"
    given = Given(options.ckpt, options.synthetic, options.calm, options.backend)
    jobs: list[Job] = [("fault", fault.key, "own" if fault.near else where) for fault in chosen]
    jobs += _legal(options, everywhere)
    found: dict[Job, Any] = {}
    reporter.start(len(jobs))
    try:
        for job, result in results(given, jobs, _engine(options)):
            found[job] = result
            reporter.say(" ".join(job[1:]))
            reporter.step()
    finally:
        for fault, job in zip(chosen, jobs, strict=False):
            if job in found:
                outcome.faults.append(fault)
                outcome.trials.append(found[job])
        outcome.legal = [run for job in jobs if job[0] == "legal" for run in found.get(job, [])]
        outcome.cases = _columns(everywhere, chosen)


def _columns(everywhere: bool, chosen: list[Fault]) -> list[Case]:
    """The cases of the matrix. Every checkpoint has them under the names that the bundled one has."""
    names = {fault.case for fault in chosen}
    config = Config.load(bundled("tiny"))
    cases = [*case_list.build(config), *(c for c in generating.build(config) if not c.costly), *pictured.build(config)]
    return [c for c in cases if everywhere or c.name in names]


def _legal(options: argparse.Namespace, everywhere: bool) -> list[Job]:
    lanes = [lane for lane in LANES if options.lane in (None, lane)]
    targets = BUNDLED[options.ckpt] if everywhere else ()
    pairs = [(lane, target) for lane in lanes for target in targets if lane == "float32" or target == targets[0]]
    return [("legal", name, lane, target) for lane, target in pairs for name in LEGAL]


def _engine(options: argparse.Namespace) -> Engine:
    usual = options.backend == "numpy" and options.ckpt in BUNDLED
    return shared.engine(options, usual=None if usual else 1)
