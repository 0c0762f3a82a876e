"""What the machine can do at most, measured in the same run and through the same library as our side."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmark.timing import on_cpu, waiter
from t5g2ref.backend import Backend
from t5g2ref.dtypes import DType
from t5g2ref.numerics import SDPA, Numerics

Array = Any
ROUNDS = 7
ROUND_SECONDS = 0.02  # calls of one round fill so long, so that launching them does not count


@dataclass(frozen=True)
class Ceilings:
    """Rates of the device.

    Args:
        side: M = N = K of the matrix product.
        gemm: dtype → operations per second, 2·M·N·K each.
        gemv: dtype → bytes of the matrix read per second in a product with one row.
        copy: bytes read and written per second by a copy.
    """

    side: int
    gemm: dict[str, float]
    gemv: dict[str, float]
    copy: float


def measure(backend: Backend, dtypes: tuple[DType, ...], threads: int | None = None) -> Ceilings:
    """Random numbers throughout: zeros multiply faster. `threads` are those of the copy on a CPU."""
    side, size = (1024, 1 << 28) if on_cpu(backend) else (8192, 1 << 30)
    square = np.random.default_rng(8192).standard_normal((side, side), dtype=np.float32)
    with backend.scope():
        square = backend.xp.asarray(square)
        tall = backend.xp.concatenate([square] * (size // square.nbytes))
        copied = copy_rate(backend, tall, threads or os.cpu_count() or 1)
        gemm = {dtype: _gemm(Numerics(dtype, SDPA, backend), square) for dtype in dtypes}
        gemv = {dtype: _gemv(Numerics(dtype, SDPA, backend), tall) for dtype in dtypes}
    return Ceilings(side, gemm, gemv, copied)


@dataclass(frozen=True)
class Beside:
    """Rates of the CPU beside one item: what it can do changes with what else it does.

    Args:
        gemm: operations per second of products of 1024³, just before the item's repeats and just after.
        gemv: bytes of the matrix read per second in a product with one row, the same twice.
    """

    gemm: tuple[float, float]
    gemv: tuple[float, float]


def beside(backend: Backend, dtype: DType) -> tuple[float, float]:
    """GEMM's and GEMV's rates now, in a fifth of a second."""
    nx = Numerics(dtype, SDPA, backend)
    square = np.random.default_rng(1024).standard_normal((1024, 1024), dtype=np.float32)
    return _gemm(nx, square), _gemv(nx, np.concatenate([square] * 16))


def _gemm(nx: Numerics, square: Array) -> float:
    a = nx.array(square)
    return 2 * len(square) ** 3 / seconds(lambda: nx.matmul(a, a), nx.backend)


def _gemv(nx: Numerics, tall: Array) -> float:
    """One row by (N, K)ᵀ, as a linear layer does it in a decoding step."""
    weight, row = nx.array(tall), nx.array(tall[:1])
    return int(weight.nbytes) / seconds(lambda: nx.matmul(row, weight.T), nx.backend)


def copy_rate(backend: Backend, source: Array, parts: int) -> float:
    """Bytes read and written per second. On a CPU by `parts` threads: one alone does not fill the memory's bus."""
    there = backend.xp.zeros_like(source)
    if not on_cpu(backend):
        return 2 * int(source.nbytes) / seconds(lambda: backend.xp.copyto(there, source), backend)
    pieces = list(zip(np.array_split(there, parts), np.array_split(source, parts), strict=True))
    with ThreadPoolExecutor(parts) as pool:
        return 2 * source.nbytes / seconds(lambda: list(pool.map(lambda p: np.copyto(*p), pieces)), backend)


def seconds(call: Callable[[], object], backend: Backend) -> float:
    """The median round's seconds for one call, after a warm-up."""
    wait = waiter(backend)
    call()
    batch = max(1, int(ROUND_SECONDS / _timed(call, wait, 1)))
    return statistics.median(_timed(call, wait, batch) for _ in range(ROUNDS))


def _timed(call: Callable[[], object], wait: Callable[[], None], batch: int) -> float:
    wait()
    began = time.perf_counter()
    for _ in range(batch):
        call()
    wait()
    return (time.perf_counter() - began) / batch
