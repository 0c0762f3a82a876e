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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from conformance.cases import catalogue as cases
from conformance.judge.judge import judge
from conformance.peers.protocol import Peer
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import Backend
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import Config
from t5g2ref.dtypes import DType
from t5g2ref.numerics import EAGER, RUNNING, SDPA

GEOMETRIES = ("tiny", "tiny-even")
TYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")


class Chunks(Backend):
    """Sums over K in chunks of so many terms, one after the other."""

    chunk = 16

    def product(self, a: Any, b: Any, dtype: Any) -> Any:
        depth = a.shape[-1]
        total = np.matmul(a[..., : self.chunk], b[..., : self.chunk, :])
        for first in range(self.chunk, depth, self.chunk):
            total = total + np.matmul(a[..., first : first + self.chunk], b[..., first : first + self.chunk, :])
        return total


class Chunks5(Chunks):
    chunk = 5


class Backwards(Backend):
    """Sums over K from the last term to the first."""

    def product(self, a: Any, b: Any, dtype: Any) -> Any:
        return np.matmul(np.ascontiguousarray(a[..., ::-1]), np.ascontiguousarray(b[..., ::-1, :]))


class Wide(Backend):
    """Sums in float64, rounded once to float32."""

    def product(self, a: Any, b: Any, dtype: Any) -> Any:
        return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)


class Rows(Backend):
    """Attention in blocks of three queries."""

    block_rows = 3


ORDERS = {"blas": Backend, "chunks of 16": Chunks, "chunks of 5": Chunks5, "backwards": Backwards, "float64": Wide}
ORDERS["rows of 3"] = Rows
OWN = [(order, profile) for order in ORDERS for profile in (SDPA, EAGER)] + [("blas", RUNNING)]


def plan(runs: int) -> Iterator[tuple[int, str, DType, str]]:
    """(seed, geometry, type, variant) of every run; each third one transformers."""
    for seed in range(runs):
        dtype = TYPES[seed % 3]
        if seed % 9 >= 6:  # all three types
            variant = f"transformers:{('eager', 'sdpa')[seed // 9 % 2]}"
        else:
            order, profile = OWN[(seed // 3 * 7) % len(OWN)]
            variant = f"{order}, {profile.name}"
        yield seed, GEOMETRIES[seed // 2 % 2], dtype, variant


def peer_of(variant: str, dtype: DType) -> Peer:
    if variant.startswith("transformers"):
        from conformance.peers.torch.transformers import TransformersPeer

        return TransformersPeer(variant.partition(":")[2], dtype)
    order, name = variant.split(", ")
    peer = ReferencePeer(ORDERS[order](), dtype)
    profile = {p.name: p for p in (SDPA, EAGER, RUNNING)}[name]
    peer._nx = replace(peer._nx, profile=profile)
    return peer


def one(seed: int, geometry: str, dtype: DType, variant: str, count: int) -> dict[str, Any]:
    """Judge one run, on so many of the cases; the dict goes into the JSON."""
    config = Config.load(bundled(geometry))
    made = Synthetic(config, seed, massive=dtype != "float16")
    target = Target(f"{geometry}, seed {seed}", config, {name: made[name] for name in made})
    peer = peer_of(variant, dtype)
    peer.open(target)
    found: dict[str, Any] = {"seed": seed, "geometry": geometry, "dtype": dtype, "variant": variant, "alarms": []}
    found |= {"cases": 0, "taps": 0, "local": 0.0, "cumulative": 0.0, "ceiling": 0.0, "unclear": []}
    every = cases.build(config, seed)
    chosen = sorted(np.random.default_rng(seed).choice(len(every), min(count, len(every)), replace=False))
    for case in (every[i] for i in chosen):
        found["cases"] += 1
        judgement = judge(peer, target, case)
        found["taps"] += len(judgement.local)
        found["unclear"] += [f"{case.name}: {kind}" for kind in judgement.unclear]
        for key, findings in (("local", judgement.local), ("cumulative", judgement.cumulative)):
            found[key] = max([found[key], *(f.judged for f in findings if f.judged == f.judged)])
        found["ceiling"] = max([found["ceiling"], *(f.ceiling for f in judgement.local if f.ceiling == f.ceiling)])
        culprit = judgement.culprit
        if judgement.error or culprit is not None:
            where = judgement.error or f"{culprit.tap}: {culprit.status}: {culprit.detail}"  # type: ignore[union-attr]
            found["alarms"].append(f"{case.name}: {where}")
    return found


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
                options.json.write_text(json.dumps(results), encoding="utf-8")
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
