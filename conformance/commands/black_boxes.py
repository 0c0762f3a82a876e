"""The option `selftest --black-box`: whether the diagnosis of a black box names the faults that were put into it."""

from __future__ import annotations

import argparse
import json
import time

from conformance.commands import options as shared
from conformance.errors import UsageError
from conformance.progress import reporting
from conformance.report.files import write_one
from conformance.selftest import diagnoses
from conformance.selftest.black_box import DRAWN, singles
from conformance.selftest.diagnoses import Diagnoses

HELP = "put faults, alone and in pairs, into a peer that shows logits alone, and demand that the diagnosis names them"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--black-box", action="store_true", help=HELP)
    parser.add_argument("--pairs", type=int, metavar="N", help=f"with --black-box: how many pairs (default: {DRAWN})")


def main(options: argparse.Namespace, patterns: list[str]) -> int:
    """Run the trials; returns 0 where all were told rightly, 1 where not, 3 after an interruption."""
    pairs = DRAWN if options.pairs is None else options.pairs
    if pairs < 0:
        raise UsageError(f"--pairs {pairs}: expected at least 0")
    faults = [fault for fault in singles() if not patterns or fault.key in patterns]
    if not faults:
        raise UsageError("no fault of a float32 peer was chosen; see `list faults`")
    if patterns and options.pairs is None:
        pairs = 0
    began, found, stopped = time.perf_counter(), Diagnoses(), False
    with reporting(quiet=options.no_progress) as reporter:
        reporter.start(len(faults) + pairs)

        def step(what: str) -> None:
            reporter.say(what)
            reporter.step()

        try:
            diagnoses.run(faults, pairs, shared.engine(options), found, step)
        except KeyboardInterrupt:
            stopped = True
    found.seconds = time.perf_counter() - began
    for line in found.lines():
        print(line)
    print("VERDICT: INCOMPLETE - interrupted" if stopped else found.last_line(), flush=True)
    if options.json is not None:
        write_one("--json", options.json, json.dumps(found.as_json(), indent=1) + "\n")
    return 3 if stopped else int(bool(found.failures()))
