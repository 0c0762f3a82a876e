"""Time attention alone, and long encoding, on a CUDA device: see `python tools/flash.py --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from t5g2ref.attention import Keys, attend
from t5g2ref.backend import BackendError, find
from t5g2ref.cache import KeyValue
from t5g2ref.dtypes import DType
from t5g2ref.masks import EVERYTHING, Band
from t5g2ref.numerics import FAST, Numerics

HELP = """\
Attention of random numbers, in TFLOP/s of the scores that are seen, beside torch's scaled_dot_product_attention where
torch is there and nothing is masked; then the encoder of --ckpt on seeded weights, in seconds, for each --encode."""
REPEATS = 9
AWAKE = 0.3  # seconds


@dataclass(frozen=True)
class Shape:
    """Of a call: B rows of T queries and keys, N heads that share K kv heads of width H, and the rule."""

    dtype: DType
    batch: int
    heads: int
    kv_heads: int
    length: int
    width: int
    band: Band = EVERYTHING

    def __str__(self) -> str:
        rule = "all keys" if self.band == EVERYTHING else f"{self.band.back} behind, {self.band.ahead} ahead"
        sizes = f"B {self.batch}, N {self.heads}, K {self.kv_heads}, T {self.length}, H {self.width}"
        return f"{self.dtype:9} {sizes}, {rule}"

    def operations(self) -> float:
        """Of both products; a score that is masked counts for nothing."""
        behind, ahead = (self.length if side is None else side for side in (self.band.back, self.band.ahead))
        queries = np.arange(self.length)
        seen = np.minimum(queries + ahead, self.length - 1) - np.maximum(queries - behind, 0) + 1
        return 4.0 * self.batch * self.heads * self.width * float(seen.sum())


SHAPES = (
    Shape("bfloat16", 1, 16, 16, 4096, 72),  # the tower
    Shape("float32", 1, 16, 16, 4096, 72),
    Shape("bfloat16", 1, 4, 1, 512, 256),  # text
    Shape("bfloat16", 1, 4, 1, 4096, 256),
    Shape("bfloat16", 1, 4, 1, 32768, 256),
    Shape("bfloat16", 1, 4, 1, 32768, 256, Band(None, 0)),
    Shape("bfloat16", 1, 4, 1, 32768, 256, Band(255, 256)),
    Shape("bfloat16", 4, 16, 16, 4096, 128),
)


def milliseconds(cuda: Any, call: Callable[[], object]) -> float:
    """On the device, by events: the median of some calls, once it is awake, which takes its clock a while."""
    taken, began = list[float](), time.perf_counter()
    while time.perf_counter() - began < AWAKE:
        call()
        cuda.get_current_stream().synchronize()
    for _ in range(REPEATS):
        first, last = cuda.Event(), cuda.Event()
        first.record()
        call()
        last.record()
        last.synchronize()
        taken.append(float(cuda.get_elapsed_time(first, last)))
    return median(taken)


def attention(device: Any) -> None:
    cupy = device.xp
    for shape in SHAPES:
        nx = Numerics(shape.dtype, FAST, device)
        with nx.scope():
            q, k, v = (
                nx.array(cupy.random.standard_normal((shape.batch, shape.length, n, shape.width), dtype="float32"))
                for n in (shape.heads, shape.kv_heads, shape.kv_heads)
            )
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
            groups, scale = [Keys(KeyValue(k, v), None, shape.band)], shape.width**-0.5
            ours = milliseconds(cupy.cuda, lambda: attend(nx, q, groups, scale=scale))  # noqa: B023
        line = f"{shape!s:62} {ours:8.3f} ms {shape.operations() / ours / 1e9:6.1f} TFLOP/s"
        print(line + theirs(cupy, shape), flush=True)


def theirs(cupy: Any, shape: Shape) -> str:
    try:
        import torch
    except ImportError:
        return ""
    if shape.band != EVERYTHING or not torch.cuda.is_available():
        return ""
    counts, kind = (shape.heads, shape.kv_heads, shape.kv_heads), getattr(torch, shape.dtype)
    q, k, v = (torch.randn(shape.batch, n, shape.length, shape.width, device="cuda", dtype=kind) for n in counts)
    k, v = (x.repeat_interleave(shape.heads // shape.kv_heads, 1) for x in (k, v))
    call = torch.nn.functional.scaled_dot_product_attention
    taken = milliseconds(cupy.cuda, lambda: call(q, k, v))
    return f"; torch {taken:8.3f} ms {shape.operations() / taken / 1e9:6.1f} TFLOP/s"


def encode(device: Any, ckpt: str, lengths: list[int]) -> None:
    from conformance.checkpoints import resolve
    from t5g2ref.model import T5Gemma2
    from t5g2ref.params import tree

    target, nx = resolve(ckpt, synthetic=True, backend=device)[0], Numerics("bfloat16", FAST, device)
    with nx.scope():
        model = T5Gemma2(target.config, tree({name: nx.array(w) for name, w in target.weights.items()}), nx)
    rng, wait = np.random.default_rng(1), device.xp.cuda.Device(device.index).synchronize
    for length in lengths:
        ids, taken = rng.integers(10, 200_000, (1, length)), []
        for _ in range(4):
            began = time.perf_counter()
            model.encode(ids)
            wait()
            taken.append(time.perf_counter() - began)
        print(f"bfloat16 {ckpt}, {length} tokens encoded: {median(taken[1:]):.3f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python tools/flash.py", description=HELP)
    parser.add_argument("--backend", default="cupy-fast", help="cupy-fast (default), or cupy for the definition's")
    parser.add_argument("--ckpt", default="270m", help="a geometry (default: 270m)")
    parser.add_argument("--encode", type=int, nargs="*", default=[32768, 131072], metavar="LENGTH")
    options = parser.parse_args(arguments)
    try:
        device = find(options.backend)
    except BackendError as error:
        print(f"flash: {error}", file=sys.stderr)
        return 2
    if device.xp is np:
        print("flash: this times kernels on a device, expected --backend cupy-fast or cupy", file=sys.stderr)
        return 2
    attention(device)
    if options.encode:
        encode(device, options.ckpt, options.encode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
