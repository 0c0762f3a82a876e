"""Everything that needs a CUDA device, in one command: the GPU tests, the conformance runs, the benchmark.

    python tools/gpu_check.py [--out FOLDER] [--only STEP …] [--skip STEP …] [--jobs CARDS | --cluster ADDRESS]

Each step runs to its end whatever became of those before it; its output goes to FOLDER/STEP.log (and .json where the
step writes one), the last lines of it to the terminal. The exit status is 0 when every step's was. `--jobs 4` runs four
side by side, each on a card of its own; `bench` comes last, alone. On one card they run one after the other: side by
side they wait for each other at every tap, and six took longer than their sum. `python -m conformance --jobs 4` has
four judges of one run on a card, by CUDA's MPS. 1b with pictures needs most of 80 GB for itself.

A fault of our kernels shows only against other ones: `tests` and `tiny-ours` hold them against NumPy, `tiny`, `270m`
and `1b` against torch, and so do those steps with `-half` in float16. Those with `-fast` hold the kernels of
`cupy-fast` against the clear ones. `270m-ours` and `270m-calm` have the same kernels
on both sides and show rounding only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpu_steps import STEPS, Ended, ended

from conformance.commands import options as shared
from conformance.errors import Unavailable, UsageError
from t5g2ref.files import write_text


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    steps = "\n".join(f"  {name:10} {what}" for name, (what, _) in STEPS.items())
    result = argparse.ArgumentParser(description=__doc__, epilog=f"steps\n{steps}", formatter_class=form)
    result.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="FOLDER", help="default: gpu-check")
    result.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help="these steps alone")
    result.add_argument("--skip", nargs="+", choices=STEPS, default=[], metavar="STEP", help="all but these")
    shared.jobs(result, "one; each has a card of its own")
    shared.cluster(result)
    result.add_argument("--tail", type=int, default=12, metavar="N", help="lines of each log to print (12)")
    return result


def kept(name: str, found: Ended, out: Path, tail: int) -> None:
    """Write what became of a step, and print the end of it."""
    write_text(out / f"{name}.log", found.log)
    if found.report:
        write_text(out / f"{name}.json", found.report)
    what, command = STEPS[name]
    shown = "\n".join(f"   {line}" for line in found.log.splitlines()[-tail:])
    print(f"\n== {name}: {what}\n   {' '.join(command).format(out=out)}\n{shown}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in STEPS if name in (options.only or STEPS) and name not in options.skip]
    results = dict[str, Ended]()
    try:
        for name, found in ended(names, shared.engine(options, usual=1)):
            kept(name, found, options.out, options.tail)
            results[name] = found
    except (UsageError, Unavailable) as error:
        parser().exit(2, f"gpu_check.py: {error}\n")
    print()
    for name in names:
        found = results[name]
        said = "ok" if found.status == 0 else f"FAILED ({found.status})"
        print(f"{said:12} {found.seconds:7.1f} s  {name:10} {STEPS[name][0]}")
    return int(any(found.status for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
