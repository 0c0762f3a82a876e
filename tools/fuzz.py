"""Spoils everything that is read and not trusted, and demands that it is accepted for what it says, or refused.

    python tools/fuzz.py --tries 20000                          every class, by weight: ten minutes on two cores
    python tools/fuzz.py --class picture --seed 77 --tries 1    one try again
    python tools/fuzz.py --tries 500000 --seed 20000 --keep DIR --json FILE         other tries, hours of them

A try is an input, made from sound files by its number alone, and read in a process of its own. It may be accepted, or
refused in the project's own words: a line, or a listing. Found are:

    traceback     any other error, a signal, words that are too long or act on a terminal, a status without its verdict
    hang          no end within 10 seconds
    memory        a refusal that took more than 100 MiB and twice the files, above the idle process
    false pass    a dump that CONFORMS though its numbers moved; a checkpoint that is not what its files say

Where the library of safetensors reads a file too, ours has to have the same numbers. Exit status: 0 nothing was found,
1 something was, 2 bad usage, 3 it was stopped: what was found until then is shown.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzzing import campaign, report

from conformance.progress import reporting
from t5g2ref.files import write_text

PACKAGES = ("numpy", "safetensors", "tokenizers", "Pillow")


def parser(names: list[str]) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("python tools/fuzz.py", description=__doc__, formatter_class=form)
    made.add_argument("--tries", type=int, default=2000, metavar="N", help="how many (2000)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="the number of the first try (0)")
    made.add_argument("--class", dest="kinds", action="append", choices=names, help="repeatable (all, by weight)")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="workers (one a core)")
    made.add_argument("--keep", type=Path, metavar="DIR", help="inputs that found something go there")
    made.add_argument("--json", type=Path, metavar="FILE", help="figures by class, and every finding")
    made.add_argument("--no-progress", action="store_true", help="no progress bar")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; returns the exit status."""
    os.environ |= campaign.ALONE  # before the readers are imported
    from fuzzing.kinds import KINDS

    options = parser(list(KINDS)).parse_args(arguments)
    if options.tries < 1 or options.jobs < 1 or options.seed < 0:
        print("fuzz: --tries and --jobs have to be at least 1, and --seed at least 0", file=sys.stderr)
        return 2
    names = [name for name in KINDS if not options.kinds or name in options.kinds]
    began, results = time.monotonic(), _results(options, [KINDS[name] for name in names])
    seconds = round(time.monotonic() - began)
    report.show(results, names)
    weights = ", ".join(f"{name} {KINDS[name].weight}" for name in names)
    print(f"\n{len(results)} tries from {options.seed} in {seconds} s; weights: {weights}; {_versions()}")
    if options.json is not None:
        facts: dict[str, Any] = {"tries": len(results), "first": options.seed, "seconds": seconds}
        write_text(options.json, report.as_json(results, names, facts | {"versions": _versions()}))
    if len(results) < options.tries:
        print(f"fuzz: interrupted after {len(results)} of {options.tries} tries", file=sys.stderr)
        return 3
    return 1 if report.found(results) else 0


def _results(options: argparse.Namespace, kinds: list[Any]) -> list[Any]:
    """What came of the tries, of as many as there were until an interruption."""
    results: list[Any] = []
    numbers = range(options.seed, options.seed + options.tries)
    with reporting(quiet=options.no_progress) as reporter:
        reporter.start(len(numbers))

        def heard(result: Any) -> None:
            results.append(result)
            reporter.say(f"{len(report.found(results))} found")
            reporter.step()

        with suppress(KeyboardInterrupt):
            campaign.run(kinds, numbers, options.jobs, options.keep, heard)
    return results


def _versions() -> str:
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *found])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers end, and what was found is shown
    sys.exit(main())
