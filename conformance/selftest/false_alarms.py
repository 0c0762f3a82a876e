"""Counts how often the judge accuses a peer that did nothing wrong, over weights, inputs and legal ways of computing.

Nothing in these runs is wrong. So every DEVIATES is a false alarm, and every INCOMPLETE is a run that says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from conformance.cases import catalogue as cases
from conformance.judge.judge import judge
from conformance.peers.find import create
from conformance.peers.protocol import Peer
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.legal import ORDERS
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import Config
from t5g2ref.dtypes import RUN_IN, DType
from t5g2ref.numerics import EAGER, RUNNING, SDPA

GEOMETRIES = ("tiny", "tiny-even")
TYPES: tuple[DType, ...] = RUN_IN


OWN = [(order, profile) for order in ORDERS for profile in (SDPA, EAGER)] + [("blas", RUNNING)]


def plan(runs: int) -> Iterator[tuple[int, str, DType, str]]:
    """(seed, geometry, type, variant) of every run; one in three is of transformers."""
    for seed in range(runs):
        dtype = TYPES[seed % 3]
        if seed % 9 >= 6:  # all three types
            variant = f"transformers:{('eager', 'sdpa')[seed // 9 % 2]}"
        else:
            order, profile = OWN[(seed // 3 * 7) % len(OWN)]
            variant = f"{order}, {profile.name}"
        yield seed, GEOMETRIES[seed // 2 % 2], dtype, variant


def peer_of(variant: str, dtype: DType) -> Peer:
    """The peer of a variant: transformers, or our own model in a legal order."""
    if variant.startswith("transformers"):
        return create(f"{variant}:{dtype}:cpu")
    order, name = variant.split(", ")
    profile = {p.name: p for p in (SDPA, EAGER, RUNNING)}[name]
    return cast(Peer, FaultyPeer(ORDERS[order], dtype=dtype, profile=profile))


def one(seed: int, geometry: str, dtype: DType, variant: str, count: int) -> dict[str, Any]:
    """Judge one run on `count` of the cases; the dict goes into the JSON."""
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
        parts = [signature.part for signature in judgement.partly]
        found["unclear"] += [f"{case.name}: {what}" for what in (*judgement.unclear, *parts)]
        for key, findings in (("local", judgement.local), ("cumulative", judgement.cumulative)):
            found[key] = max([found[key], *(f.judged for f in findings if f.judged == f.judged)])
        found["ceiling"] = max([found["ceiling"], *(f.ceiling for f in judgement.local if f.ceiling == f.ceiling)])
        culprit = judgement.culprit
        if judgement.error or culprit is not None:
            blame = "" if culprit is None else f"{culprit.tap}: {culprit.status}: {culprit.detail}"
            where = judgement.error or blame
            found["alarms"].append(f"{case.name}: {where}")
    return found
