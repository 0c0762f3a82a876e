"""How often the judge accuses a peer that did nothing wrong.

    python tools/false_alarms.py [--runs 200] [--jobs N] [--json FILE]

Each run draws other weights (seeded, of trained-like statistics, at the geometry of a bundled checkpoint), other inputs
and a legal way of computing: orders of summation (the BLAS's, running, in chunks, backwards, in float64), fused and
unfused scores, attention in blocks of other sizes, transformers' eager and sdpa; in float32, bfloat16 and float16. All
cases are judged, or some drawn by the run's seed. Nothing here is wrong, so every DEVIATES is a false alarm, and every
INCOMPLETE a run without use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conformance.selftest.false_alarms import TYPES, one, plan
from t5g2ref.files import write_text


def _one_core(turn: Any) -> None:
    """Each process has a core to itself, and one thread of the BLAS's and torch's on it."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if hasattr(os, "sched_setaffinity"):
        with turn.get_lock():
            turn.value += 1
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[turn.value % len(cores)]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="how many (200)")
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="of each run (all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (one a core)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run, written as they end")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    context = get_context("spawn")
    turn = context.Value("i", 0)
    with ProcessPoolExecutor(options.jobs, context, _one_core, (turn,)) as pool:
        for future in as_completed([pool.submit(one, *run, options.cases) for run in plan(options.runs)]):
            results.append(future.result())
            if options.json is not None:
                write_text(options.json, json.dumps(results))
            for alarm in results[-1]["alarms"]:
                print(f"ALARM {results[-1]['variant']}, {results[-1]['dtype']}, seed {results[-1]['seed']}: {alarm}")
            print(f"\r{len(results)} of {options.runs}", end="", file=sys.stderr, flush=True)
    _show(results)
    return 0


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
