"""Time decoding as one kernel (`cupy-fast`), beside the limit of the card's memory.

    python tools/decoding.py [--ckpt 1b] [--dtype bfloat16] [--batch 1,8] [--source 512] [--tokens 64]

Weights are seeded. For each batch: milliseconds a token, median of five launches of so many tokens, and the share of
the bound, which is the bytes of the decoder's matrices and the table at the rate of a copy. The logits are held against
those of the clear path along the same ids; exit status 1 where they are further apart than two orders of rounding.
Below it the same for ids that are drawn (temperature 0.8, top-k 64, top-p 0.95), beside greedy's time, and how many of
them the definition draws from the same logits by the same numbers; exit status 1 where it is not all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
from benchmark.ceilings import copy_rate

from conformance.arrays import to_backend
from conformance.checkpoints import resolve
from t5g2ref.backend import Backend, BackendError, find
from t5g2ref.dtypes import unit_roundoff
from t5g2ref.embedding import embed_scale
from t5g2ref.generate.processors import drawn
from t5g2ref.generate.rules import Sampling, narrowed
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import FAST, SDPA, Numerics
from t5g2ref.one_step import whole_steps
from t5g2ref.params import tree
from t5g2ref.rope import rope_tables

LAUNCHES, CHECKED = 5, 6
SAMPLING, SEED = Sampling(temperature=0.8, top_k=64, top_p=0.95), 1
FAR = 40  # roundings' root: some hundred of them, one after the other


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--ckpt", default="1b", help="tiny, 270m, 1b or 4b (1b)")
    result.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    result.add_argument("--batch", default="1,8", metavar="N,N", help="rows (1,8)")
    result.add_argument("--source", type=int, default=512, metavar="N", help="tokens of the source (512)")
    result.add_argument("--tokens", type=int, default=64, metavar="N", help="ids of a launch (64)")
    return result


def rate(backend: Backend) -> float:
    """Bytes a second of a copy, read and written, as tools/bench.py measures them."""
    with backend.scope():
        return copy_rate(backend, backend.xp.ones(1 << 28, "float32"), parts=1)


def waited(backend: Backend) -> float:
    """The time when all that was asked for is done."""
    backend.host(backend.xp.zeros(1))
    return time.perf_counter()


class Timed:
    """A model, its clear twin and one batch."""

    def __init__(self, clear: T5Gemma2, fast: T5Gemma2, batch: int, source: int) -> None:
        ids = np.random.default_rng(1).integers(3, 200, (batch, source))
        self.clear, self.fast, self.cache = clear, fast, clear.start(clear.encode(ids))
        self.first = clear.nx.xp.asarray(ids[:, 0])
        nx, config, table = fast.nx, fast.config, fast.weights.encoder.text_model.embed_tokens
        assert fast.weights.decoder is not None, "the released checkpoints have one"
        scale = embed_scale(nx, config.decoder.hidden_size)
        given = (fast.weights.decoder, table, config.decoder, batch, scale, config.eoi_token_index)
        with nx.scope():
            self.begin, self.begin_drawing = (whole_steps(nx, *given, sampling) for sampling in (None, SAMPLING))

    def chunk(self, tokens: int, uniform: Any = None) -> tuple[float, Any]:
        """Seconds of one launch, and what it made: the likeliest ids, or those drawn by uniform (tokens, B)."""
        nx, decoder = self.fast.nx, self.fast.config.decoder
        begin = self.begin if uniform is None else self.begin_drawing
        assert begin is not None, "asked before"
        with nx.scope():
            steps, running = begin(self.cache, tokens), nx.xp.ones(len(self.first), dtype=bool)
            rope = rope_tables(nx, decoder, nx.xp.arange(tokens)[None])
            numbers = None if uniform is None else nx.xp.asarray(uniform)
            began = waited(nx.backend)
            made = steps.next(self.first, running, rope, (), decoder.pad_token_id, numbers)
            return waited(nx.backend) - began, made

    def defined(self, made: Any, uniform: Any) -> int:
        """How many of the ids the definition draws from the same logits by the same numbers."""
        nx = self.fast.nx
        with nx.scope():
            steps = [narrowed(nx.xp, nx.wide(logits), SAMPLING) for logits in made.logits.swapaxes(0, 1)]
            ids = [drawn(nx.xp, left, nx.xp.asarray(u)) for left, u in zip(steps, uniform, strict=True)]
            return int((nx.xp.stack(ids, axis=1) == made.ids).sum())

    def apart(self, made: Any) -> float:
        """How far the logits are from the clear path's, by norms."""
        nx, ids = self.clear.nx, self.clear.nx.xp.concatenate([self.first[:, None], made.ids[:, :-1]], axis=1)
        logits = self.clear.logits(self.clear.decode(ids, self.cache)[0])
        a, b = (nx.backend.host(x).astype(np.float64) for x in (made.logits, logits))
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def bytes_of(model: T5Gemma2) -> int:
    """What a token reads: the decoder's matrices and the table."""
    decoder = model.weights.decoder
    assert decoder is not None, "the released checkpoints have one"
    size = int(model.weights.encoder.text_model.embed_tokens.weight.nbytes)
    for layer in decoder.layers:
        a, mlp = layer.self_attn, layer.mlp
        for part in (a.q_proj, a.k_proj, a.v_proj, a.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            size += int(part.weight.nbytes)
    return size


def measured(options: argparse.Namespace, clear: Backend, fast: Backend) -> int:
    """Print the table; returns the exit status."""
    target = resolve(options.ckpt, synthetic=options.ckpt != "tiny", backend=clear)[0]
    nx = Numerics(options.dtype, SDPA, clear)
    with nx.scope():
        weights = {name: nx.array(to_backend(w, clear)) for name, w in target.rounded(options.dtype).items()}
    model = T5Gemma2(target.config, tree(weights), nx)
    twin, size, copies, status = (
        model.with_numerics(Numerics(options.dtype, FAST, fast)),
        bytes_of(model),
        rate(clear),
        0,
    )
    print(f"{fast.describe()}\n{size / 1e9:.3f} GB a token, copies at {copies / 1e12:.2f} TB/s")
    print("batch   ms a token   tokens/s   of the bound   logits apart")
    for batch in (int(part) for part in options.batch.split(",")):
        timed = Timed(model, twin, batch, options.source)
        if timed.begin is None:
            print(f"{batch:5}   not served by the kernel")
            continue
        apart = timed.apart(timed.chunk(CHECKED)[1])
        each = statistics.median(timed.chunk(options.tokens)[0] for _ in range(LAUNCHES)) / options.tokens
        print(
            f"{batch:5} {1e3 * each:12.3f} {batch / each:10.0f} {size / copies / each:14.0%} {apart:14.1e}", flush=True
        )
        status |= not apart <= FAR * unit_roundoff(options.dtype)
        status |= sampled(timed, batch, options.tokens, each)
    return status


def sampled(timed: Timed, batch: int, tokens: int, greedy: float) -> bool:
    """Print the line of drawn ids beside greedy's seconds a token; whether any is not the definition's."""
    if timed.begin_drawing is None:
        print("drawn   not served by the kernel")
        return False
    uniform = np.random.default_rng(SEED).random((tokens, batch))
    defined = timed.defined(timed.chunk(tokens, uniform)[1], uniform)
    each = statistics.median(timed.chunk(tokens, uniform)[0] for _ in range(LAUNCHES)) / tokens
    print(
        f"drawn {1e3 * each:12.3f} {batch / each:10.0f}   {each / greedy - 1:+.1%} of greedy's time; "
        f"{defined} of {tokens * batch} ids are the definition's",
        flush=True,
    )
    return defined != tokens * batch


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return measured(options, find("cupy"), find("cupy-fast"))
    except BackendError as error:
        print(f"decoding.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
