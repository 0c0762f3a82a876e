"""Counts how often the judge accuses a peer that did nothing wrong.

    python tools/false_alarms.py [--runs 200] [--jobs N | --cluster ADDRESS] [--json FILE]  the bundled geometries
    python tools/false_alarms.py --geometry released [--runs 48] [--backend cupy]      released widths, four layers
    python tools/false_alarms.py --geometry 270m [--runs 20]                           a whole released model

Each run draws other weights (seeded, of trained-like statistics), other inputs and a legal way of computing: orders of
summation (the BLAS's, running, in chunks, backwards, in float64), fused, unfused and flash scores, attention in blocks
of other sizes, transformers' eager and sdpa; in float32, bfloat16 and float16. `released` judges rows of 30 to 700
tokens at the widths of 270m and 1b, every second run with massive activations. `270m` judges `short`, `window` and
`equal-lengths` in bfloat16, --runs seeds for each of eager and sdpa. Nothing here is wrong, so every DEVIATES is a
false alarm, and every INCOMPLETE a run without use.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conformance.commands import options as shared
from conformance.errors import Unavailable, UsageError
from conformance.selftest.false_alarms import TYPES, Drawn, plan, released_plan, study, whole_plan
from t5g2ref.files import write_text

USUAL = {"bundled": 200, "released": 48, "270m": 20}  # runs


def _drawn(options: argparse.Namespace) -> list[Drawn]:
    runs = options.runs or USUAL[options.geometry]
    if options.geometry == "270m":
        return list(whole_plan(runs, options.first))
    return list((plan if options.geometry == "bundled" else released_plan)(runs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=USUAL, default="bundled", help="of the models (bundled)")
    parser.add_argument("--runs", type=int, metavar="N", help="how many (200, released 48, 270m 20)")
    parser.add_argument("--first", type=int, default=1, metavar="SEED", help="where 270m's seeds begin (1)")
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="of each bundled run (all)")
    shared.jobs(parser, "one a core; one on a device")
    shared.cluster(parser)
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy", help="where judge and peer compute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run, written as they end")
    options = parser.parse_args()
    try:
        return _run(options)
    except (UsageError, Unavailable) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _run(options: argparse.Namespace) -> int:
    results: list[dict[str, Any]] = []
    runs, engine = _drawn(options), shared.engine(options, usual=1 if options.backend == "cupy" else None)
    for _, result in engine.done(study(options.cases, options.backend), runs):
        results.append(result)
        if options.json is not None:
            write_text(options.json, json.dumps(results))
        _tell(result)
        print(f"\r{len(results)} of {len(runs)}", end="", file=sys.stderr, flush=True)
    _show(results)
    return 0


def _tell(result: dict[str, Any]) -> None:
    where = f"{result['variant']}, {result['geometry']}, {result['dtype']}, seed {result['seed']}"
    for alarm in result["alarms"]:
        print(f"ALARM {where}: {alarm}", flush=True)
    for what in result["unclear"]:
        print(f"UNCLEAR {where}: {what}", flush=True)


def _show(results: list[dict[str, Any]]) -> None:
    wrong = sum(bool(r["alarms"]) for r in results)
    unclear = sum(bool(r["unclear"]) and not r["alarms"] for r in results)
    comparisons, taps = (sum(r[key] for r in results) for key in ("cases", "taps"))
    print(f"\n{len(results)} runs, {comparisons} comparisons, {taps} taps: {wrong} DEVIATES, {unclear} INCOMPLETE")
    for dtype in TYPES:
        of = [r for r in results if r["dtype"] == dtype]
        if of:
            largest = {key: max(r[key] for r in of) for key in ("local", "cumulative", "ceiling")}
            print(f"{dtype:9} {len(of):4} runs, largest", ", ".join(f"{k} {v:.3g}" for k, v in largest.items()))
    print("variants:", ", ".join(f"{name} {count}" for name, count in Counter(r["variant"] for r in results).items()))


if __name__ == "__main__":
    sys.exit(main())
