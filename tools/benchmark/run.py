"""One run of the benchmark: the ceilings, each dtype's items, loading, the truth; then floors under every row."""

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

from benchmark import machine
from benchmark.ceilings import Ceilings, measure
from benchmark.counts import Lengths, bytes_moved, operations
from benchmark.items import Bench, Reporter
from benchmark.options import WAYS, Options
from benchmark.result import Result, Row
from benchmark.timing import on_cpu
from conformance.peers import find as peers
from conformance.target import Target
from t5g2ref.config import Config
from t5g2ref.numerics import Numerics

UNBOUND = ("load", "verdict")  # no arithmetic


def run(
    options: Options, target: Target, origin: str, reporter: Reporter, kept: Callable[[Result], None] = lambda _: None
) -> Result:
    """Everything that was asked for. `kept` is given what there is so far, after each row.

    Raises PeerUnavailable before anything is measured.
    """
    for dtype in options.dtypes if options.items != ("truth",) else ():
        for way in (name for name in options.against if name in WAYS):
            peers.create(options.peer(way, dtype))
    with limited(options.threads):
        bench = Bench(options, target, reporter)
        found = partial(
            result_of, bench, [origin, *notes(options, bench.on_cpu)], machine.versions(options.backends[0])
        )
        ceilings = ceilings_of(bench)
        bench.kept = lambda: kept(found(ceilings, complete=False))
        reporter.start(bench.total())
        for dtype in options.dtypes:
            bench.attempt(f"every item in {dtype}", partial(bench.paired, dtype))
        for item, measured in (("load", bench.loads), ("truth", bench.truths), ("verdict", bench.verdicts)):
            if item in options.items:
                bench.attempt(item, measured)
    return found(ceilings, complete=True)


def result_of(
    bench: Bench, remarks: list[str], versions: dict[str, str], ceilings: Ceilings, *, complete: bool
) -> Result:
    """What the bench has found so far."""
    options, config = bench.options, bench.target.config
    threads = options.threads or (torch.get_num_threads() if bench.on_cpu else None)
    return Result(
        title=f"{bench.target.name}: {described(config, bench)}",
        machine=machine.name(options.backends[0], threads),
        notes=remarks,
        columns=list(bench.columns.values()),
        rows=[bounded(row, config, bench.usual, options, ceilings) for row in bench.rows],
        ceilings=ceilings,
        held=list(bench.held),
        versions=versions,
        remarks=list(bench.remarks),
        warnings=list(bench.warnings),
        complete=complete,
    )


def ceilings_of(bench: Bench) -> Ceilings:
    """Measured for every dtype that will have a row; without numbers, and with a warning, where that fails."""
    found = [Ceilings(0, {}, {}, math.nan)]
    options = bench.options
    dtypes = (*options.dtypes, *(["float64"] if "truth" in options.items else []))
    bench.attempt("measuring the ceilings", lambda: found.append(measure(options.backends[0], dtypes, options.threads)))
    bench.release()
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


def described(config: Config, bench: Bench) -> str:
    lengths, side = bench.usual, config.vision.image_size
    sources, batches = (", ".join(map(str, numbers)) for numbers in (bench.sources, bench.options.batches))
    return (
        f"source {sources}, target {lengths.target}, decode {lengths.steps} steps behind {lengths.warm} cached, image "
        f"{side} × {side}, batch of {batches}"
    )


def notes(options: Options, host: bool) -> list[str]:
    """What a reader has to know of the numbers."""
    lines = [
        "the sides take turns in one process; host clock around each call, device idle before and after"
        + ("" if host else ": the time to launch kernels is in it"),
    ]
    if host:
        lines.append(_busy(os.getloadavg()[0], os.cpu_count() or 1))
        lines += _chosen(os.environ)
    elif "float32" in options.dtypes:
        lines.append("float32 is float32: TF32 is off on both sides, and a product of each is tested for it")
    lines.append(
        "memory: growth of the process's peak resident set in one call"
        if host
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


def bounded(row: Row, config: Config, usual: Lengths, options: Options, ceilings: Ceilings) -> Row:
    """The row with what it cannot do without, and the seconds of that at the rates beside it, or at the ceilings."""
    if row.item in UNBOUND:
        return row
    lengths = replace(usual, source=row.source or usual.source, batch=row.batch)
    dtype = "float32" if row.item == "truth" else row.dtype  # the truth's weights stay in it
    size = Numerics(dtype, backend=options.backends[0]).storage.itemsize
    work, moved = operations(row.item, config, lengths), bytes_moved(row.item, config, lengths, size)
    rate, speed = ceilings.gemm.get(row.dtype, math.nan), ceilings.copy
    if row.beside is not None:
        rate, speed = mean(row.beside.gemm), mean(row.beside.gemv)
    elif on_cpu(options.backends[0]):
        speed = ceilings.gemv.get(row.dtype, math.nan)
    return replace(row, operations=work, bytes=moved, computing=work / rate, moving=moved / speed)
