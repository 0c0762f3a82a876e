"""Counts how often the judge accuses a peer that did nothing wrong, over weights, inputs and legal ways of computing.

Nothing in these runs is wrong. So every DEVIATES is a false alarm, and every INCOMPLETE is a run that says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np

from conformance.arrays import to_backend
from conformance.cases import catalogue as cases
from conformance.cases.case import Case, Run
from conformance.cases.ingredients import Kit
from conformance.exchange.plain import PlainError, decoded
from conformance.judge.judge import judge
from conformance.peers.find import create
from conformance.peers.protocol import Peer
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.legal import ORDERS
from conformance.sweep.task import Task
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import find
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import Config, TextConfig, preset
from t5g2ref.dtypes import RUN_IN, DType
from t5g2ref.numerics import EAGER, FLASH, RUNNING, SDPA

GEOMETRIES = ("tiny", "tiny-even")
RELEASED = ("270m", "1b")
TYPES: tuple[DType, ...] = RUN_IN
PROFILES = {profile.name: profile for profile in (SDPA, EAGER, RUNNING, FLASH)}
OWN = [(order, profile) for order in ORDERS for profile in (SDPA, EAGER)] + [("blas", RUNNING), ("blas", FLASH)]

CUT = slice(4, 8)  # of a released stack: sliding, full, sliding, sliding
WORDS = 2048  # of its vocabulary
LENGTHS = (30, 700)  # of the encoder's rows
WHOLE = ("short", "window", "equal-lengths")  # cases of a whole released model
FOUND: dict[str, Any] = {  # what is told of a run
    "seed": int,
    "geometry": str,
    "dtype": str,
    "variant": str,
    "cases": int,
    "taps": int,
    "local": float,
    "cumulative": float,
    "ceiling": float,
    "alarms": list[str],
    "unclear": list[str],
}


@dataclass(frozen=True)
class Drawn:
    """One run of the study.

    Args:
        geometry: "tiny"; "270m cut": four of its layers and few words; "270m": all of it.
        variant: "transformers:sdpa", or an order of summation and a profile of ours: "backwards, eager".
    """

    seed: int
    geometry: str
    dtype: DType
    variant: str


def plan(runs: int) -> Iterator[Drawn]:
    """Runs at the bundled geometries; one in three is of transformers."""
    for seed in range(runs):
        dtype = TYPES[seed % 3]
        if seed % 9 >= 6:  # all three types
            variant = f"transformers:{('eager', 'sdpa')[seed // 9 % 2]}"
        else:
            order, profile = OWN[(seed // 3 * 7) % len(OWN)]
            variant = f"{order}, {profile.name}"
        yield Drawn(seed, GEOMETRIES[seed // 2 % 2], dtype, variant)


def released_plan(runs: int) -> Iterator[Drawn]:
    """Runs of transformers at the released widths, in four layers: every second with massive activations, two of three
    in bfloat16."""
    for seed in range(runs):
        dtype = ("bfloat16", "bfloat16", ("float32", "float16")[seed // 3 % 2])[seed % 3]
        variant = f"transformers:{('sdpa', 'eager')[seed % 2]}"
        yield Drawn(seed, f"{RELEASED[seed // 2 % 2]} cut", cast(DType, dtype), variant)


def whole_plan(seeds: int, first: int = 1, geometry: str = "270m") -> Iterator[Drawn]:
    """Runs of transformers at a whole released geometry in bfloat16, on so many seeds."""
    for seed in range(first, first + seeds):
        for attention in ("eager", "sdpa"):
            yield Drawn(seed, geometry, "bfloat16", f"transformers:{attention}")


def cut(config: Config) -> Config:
    """A released geometry with four layers a stack and few words; widths, heads and windows stay."""

    def shorter(text: TextConfig) -> TextConfig:
        kinds = text.layer_types[CUT]
        return replace(text, num_hidden_layers=len(kinds), layer_types=kinds, vocab_size=WORDS)

    last = WORDS - 1
    return replace(
        config,
        encoder=shorter(config.encoder),
        decoder=shorter(config.decoder),
        vision=replace(config.vision, num_hidden_layers=1),
        boi_token_index=last - 2,
        eoi_token_index=last - 1,
        image_token_index=last,
    )


def long_cases(config: Config, seed: int) -> list[Case]:
    """A case of one long row, and one of ragged rows; the lengths are drawn."""
    kit = Kit(config, np.random.default_rng([seed, 700]))
    source, answer = (int(kit.rng.integers(*bounds)) for bounds in (LENGTHS, (4, 64)))
    ids, mask = kit.padded([source // 2 + 1, source // 3 + 1], ("left", "right")[seed % 2])
    one, ragged = Run(kit.ids(1, source), kit.ids(1, answer)), Run(ids, kit.ids(2, answer), mask)
    return [Case(f"{source} to {answer}", "", (one,)), Case(f"ragged, {ids.shape[1]} to {answer}", "", (ragged,))]


def peer_of(variant: str, dtype: DType, device: str) -> Peer:
    """The peer of a variant: transformers, or our own model in a legal order."""
    if variant.startswith("transformers"):
        return create(f"{variant}:{dtype}:{device}")
    order, name = variant.split(", ")
    return cast(Peer, FaultyPeer(ORDERS[order], dtype=dtype, profile=PROFILES[name]))


def target_of(run: Drawn, backend: str) -> Target:
    """Weights of the run's own seed. Every second released one has massive activations; float16 holds none."""
    name, _, part = run.geometry.partition(" ")
    config = Config.load(bundled(name)) if name in GEOMETRIES else cut(preset(name)) if part else preset(name)
    calm = run.dtype == "float16" or (bool(part) and run.seed % 4 > 1)
    made, device = Synthetic(config, run.seed, massive=not calm), find(backend)
    weights = {tensor: to_backend(made[tensor], device) for tensor in made}
    return Target(f"{run.geometry}, seed {run.seed}", config, weights, backend=device)


def cases_of(run: Drawn, config: Config, count: int) -> list[Case]:
    """So many of the cases, drawn by the seed; of a released geometry its own."""
    if run.geometry.endswith("cut"):
        return long_cases(config, run.seed)
    every = cases.build(config, run.seed)
    if run.geometry not in GEOMETRIES:
        return [case for case in every if case.name in WHOLE]
    return [
        every[i]
        for i in sorted(np.random.default_rng(run.seed).choice(len(every), min(count, len(every)), replace=False))
    ]


def study(count: int, backend: str = "numpy") -> Task:
    """`one` as a task for many processes, whose jobs are runs."""
    return Task(_given, (count, backend), _one, lost=_lost, checked=_checked)


def _given(count: int, backend: str) -> tuple[int, str]:
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
    return count, backend


def _one(given: tuple[int, str], run: Drawn) -> dict[str, Any]:
    return one(run, *given)


def _lost(run: Drawn, how: str) -> dict[str, Any]:
    """A run that ended its process says nothing, which is told."""
    return _begun(run) | {"unclear": [how]}


def _checked(run: Drawn, raw: Any) -> dict[str, Any]:
    """What another machine found in the run."""
    if not isinstance(raw, dict) or set(raw) != set(FOUND):
        raise PlainError(f"expected {', '.join(FOUND)}")
    found = {name: decoded(kind, raw[name], name) for name, kind in FOUND.items()}
    if any(found[name] != value for name, value in asdict(run).items()):
        raise PlainError(f"is of another run than seed {run.seed}")
    return found


def _begun(run: Drawn) -> dict[str, Any]:
    return asdict(run) | {name: kind() for name, kind in FOUND.items() if name not in asdict(run)}


def one(run: Drawn, count: int, backend: str = "numpy") -> dict[str, Any]:
    """Judge one run on `count` of the cases; the dict goes into the JSON."""
    target = target_of(run, backend)
    peer = peer_of(run.variant, run.dtype, "cpu" if backend == "numpy" else "cuda")
    peer.open(target)
    found = _begun(run)
    for case in cases_of(run, target.config, count):
        _judged(found, peer, target, case)
    peer.close()
    return found


def _judged(found: dict[str, Any], peer: Peer, target: Target, case: Case) -> None:
    """Add what came of one case."""
    judgement = judge(peer, target, case)
    found["cases"] += 1
    found["taps"] += len(judgement.local)
    parts = [signature.part for signature in judgement.partly]
    found["unclear"] += [f"{case.name}: {what}" for what in (*judgement.unclear, *parts)]
    for key, findings in (("local", judgement.local), ("cumulative", judgement.cumulative)):
        found[key] = max([found[key], *(f.judged for f in findings if f.judged == f.judged)])
    found["ceiling"] = max([found["ceiling"], *(f.ceiling for f in judgement.local if f.ceiling == f.ceiling)])
    culprit = judgement.culprit
    if judgement.error or culprit is not None:
        blame = "" if culprit is None else f"{culprit.tap}: {culprit.status}: {culprit.detail}"
        found["alarms"].append(f"{case.name}: {judgement.error or blame}")
