"""One run of the benchmark: each dtype's items, loading, the truth, then the ceilings that they are held against."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import mean

import threadpoolctl
import torch

from benchmark.ceilings import Ceilings, measure
from benchmark.counts import Lengths, decode_bytes, operations
from benchmark.items import Bench
from benchmark.machine import versions
from benchmark.options import Options
from benchmark.report import Result, Row
from conformance.peers import find as peers
from conformance.target import Target
from t5g2ref.backend import NUMPY
from t5g2ref.config import Config
from t5g2ref.numerics import Numerics


def run(options: Options, target: Target, origin: str, say: Callable[[str], None]) -> Result:
    """Everything that was asked for. PeerUnavailable before anything is measured."""
    for dtype in options.dtypes if options.items != ("truth",) else ():
        peers.create(options.peer(dtype))
    with limited(options.threads):
        bench = Bench(options, target, say)
        remarks = notes(options)
        for dtype in options.dtypes:
            bench.attempt(f"every item in {dtype}", partial(bench.paired, dtype))
        bench.attempt("load", bench.loads)
        bench.attempt("truth", bench.truths)
        bench.attempt("verdict", bench.verdicts)
        ceilings = ceilings_of(bench)
    config = target.config
    return Result(
        title=f"{target.name} on {options.backend.name}: {described(config, bench.lengths)}",
        notes=[origin, *remarks],
        rows=[bounded(row, config, bench.lengths, options, ceilings) for row in bench.rows],
        ceilings=ceilings,
        held=bench.held,
        versions=versions(options.backend),
        warnings=bench.warnings,
    )


def ceilings_of(bench: Bench) -> Ceilings:
    """Measured for every dtype that has a row; without numbers, and with a warning, where that fails."""
    found = [Ceilings(0, {}, {}, math.nan)]
    bench.say("ceilings")
    bench.release()
    dtypes = tuple(dict.fromkeys(row.dtype for row in bench.rows))
    backend, threads = bench.options.backend, bench.options.threads
    bench.attempt("measuring the ceilings", lambda: found.append(measure(backend, dtypes, threads)))
    return found[-1]


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """So many threads for the BLAS and for torch, inside the block."""
    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    with threadpoolctl.threadpool_limits(threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def described(config: Config, lengths: Lengths) -> str:
    side = config.vision.image_size
    return (
        f"source {lengths.source}, target {lengths.target}, decode {lengths.steps} steps behind {lengths.warm} cached, "
        f"image {side} × {side}, batch of one"
    )


def notes(options: Options) -> list[str]:
    """What a reader has to know of the numbers."""
    on_cpu = options.backend is NUMPY
    lines = [
        f"transformers: {options.attention} attention, no compilation; the two sides take turns in one process",
        "host clock around each call, device idle before and after"
        + ("" if on_cpu else ": the time to launch kernels is in it"),
    ]
    if on_cpu:
        lines.append(_busy(os.getloadavg()[0], os.cpu_count() or 1))
        lines += _chosen(os.environ)
    elif "float32" in options.dtypes:
        lines.append("float32 is float32: TF32 is off on both sides, and a product of each is tested for it")
    lines.append(
        "memory: growth of the process's peak resident set in one call"
        if on_cpu
        else "memory: what each library's pool held at most in one call, without cuBLAS's own workspaces"
    )
    if "load" in options.items:
        lines.append("load: before each repeat the system is asked to forget its copy of the files")
    return lines


def _chosen(environment: Mapping[str, str]) -> list[str]:
    """OpenBLAS takes the kernels of the processor that it finds, unless it is told of another."""
    told = environment.get("OPENBLAS_CORETYPE")
    return [f"OPENBLAS_CORETYPE={told}: NumPy's products use its kernels, not this processor's"] if told else []


def _busy(load: float, cores: int) -> str:
    """Threads that wait for each other at every product lose far more than their share of a busy core."""
    line = f"{cores} cores, load average {load:.1f} before the first item"
    return line if load < cores / 4 else f"{line}: BUSY, do not quote these times"


def bounded(row: Row, config: Config, lengths: Lengths, options: Options, ceilings: Ceilings) -> Row:
    """The row with the floor that the ceilings set."""
    if row.item in ("load", "verdict"):
        return row
    if row.item == "decode":
        size = Numerics(row.dtype, backend=options.backend).storage.itemsize
        if row.beside is not None:
            return replace(row, bound="GEMV", floor=decode_bytes(config, lengths, size) / mean(row.beside.gemv))
        return replace(row, bound="copy", floor=decode_bytes(config, lengths, size) / ceilings.copy)
    rate = ceilings.gemm.get(row.dtype, math.nan) if row.beside is None else mean(row.beside.gemm)
    return replace(row, bound="GEMM", floor=operations(row.item, config, lengths) / rate)
