"""Where the time goes on one core: CPU time of each stage of the encoder, the tower or a cached step, in float32.

    python tools/stages.py encode|vision|decode [--layers 6] [--length 512] [--repeats 5]

Seeded weights at the 270m geometry, with fewer layers, and one thread: then CPU time is what the stage costs, whatever
else the machine does, but for the caches and the memory that all share. Products are listed by their shapes with their
rate; everything else is NumPy's passes over arrays. A stage's time is without that of the stages inside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from math import prod
from typing import Any
from unittest import mock

import numpy as np
from threadpoolctl import threadpool_limits

from t5g2ref import attention, encoder, mlp, vision
from t5g2ref.backend import Backend
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import Config, preset
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import SDPA, Numerics
from t5g2ref.params import tree

STAGES = [
    ("softmax", attention, "attention_weights"),
    ("masks", attention, "visible"),
    ("norm and RoPE of heads", attention, "turned_norm"),
    ("heads split and merged", attention, "merge_heads"),
    ("attention besides", attention, "attend"),
    ("gated GELU", mlp, "gated"),
    ("GELU", vision, "gelu_tanh"),
    ("LayerNorm", vision, "layer_norm"),
    *(("RMSNorm", module, "rms_norm") for module in (encoder, mlp)),
    *(("RMSNorm and residual", module, "add_norm") for module in (encoder, mlp)),
]


class Clock:
    """Exclusive CPU seconds and operations by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, int] = defaultdict(int)
        self._inner = [0.0]

    def timed(self, call: Callable[..., Any], label: Callable[..., str]) -> Callable[..., Any]:
        @wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = time.thread_time()
            result = call(*args, **kwargs)
            seconds = time.thread_time() - began
            self.seconds[label(*args)] += seconds - self._inner.pop()
            self._inner[-1] += seconds
            return result

        return wrapper

    def product(self, _: Any, a: Any, b: Any, *__: Any) -> str:
        name = f"product ({a.shape[-2]}, {a.shape[-1]}) × ({b.shape[-2]}, {b.shape[-1]})"
        self.operations[name] += 2 * prod(a.shape) * b.shape[-1]
        return name


def model_of(layers: int) -> T5Gemma2:
    config = preset("270m")
    kinds = config.encoder.layer_types[:layers]
    text, eyes = {"num_hidden_layers": len(kinds), "layer_types": kinds}, {"num_hidden_layers": 1}
    config = replace(
        config,
        encoder=replace(config.encoder, **text),
        decoder=replace(config.decoder, **text),
        vision=replace(config.vision, **eyes),
    )
    return T5Gemma2(config, tree(dict(Synthetic(config))), Numerics("float32", SDPA))


def work_of(model: T5Gemma2, what: str, length: int) -> Callable[[], object]:
    config: Config = model.config
    rng = np.random.default_rng(270)
    ids = rng.integers(5, 60_000, (1, length))
    if what == "encode":
        return lambda: model.encode(ids)
    if what == "vision":
        side = config.vision.image_size
        pixels = rng.uniform(-1, 1, (1, config.vision.num_channels, side, side)).astype(np.float32)
        return lambda: vision.image_features(model.nx, model.weights.encoder, config, pixels)
    cache = model.decode(ids[:, :32], model.start(model.encode(ids)))[1]
    return lambda: model.logits(model.decode(ids[:, :1], cache)[0])


def main(arguments: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python tools/stages.py", description=__doc__, formatter_class=form)
    parser.add_argument("what", choices=("encode", "vision", "decode"))
    for name, default in (("--layers", 6), ("--length", 512), ("--repeats", 5)):
        parser.add_argument(name, type=int, default=default, metavar="N")
    given = parser.parse_args(arguments)
    clock, model = Clock(), model_of(given.layers)
    with threadpool_limits(1), ExitStack() as stack:
        run = work_of(model, given.what, given.length)
        for label, module, name in STAGES:
            timed = clock.timed(getattr(module, name), lambda *_, label=label: label)
            stack.enter_context(mock.patch.object(module, name, timed))
        stack.enter_context(mock.patch.object(Backend, "product", clock.timed(Backend.product, clock.product)))
        run()
        clock.seconds.clear(), clock.operations.clear()
        began = time.thread_time()
        for _ in range(given.repeats):
            run()
        total = time.thread_time() - began
    show(clock, total, given.repeats)
    return 0


def show(clock: Clock, total: float, repeats: int) -> None:
    """A line a stage, the longest first; then what lies between them, and all."""
    for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        rate = f"{clock.operations[name] / seconds / 1e9:6.0f} GFLOP/s" if clock.operations.get(name) else ""
        print(f"{name:42}{seconds / repeats * 1e3:9.2f} ms {seconds / total:6.1%} {rate}")
    rest = total - sum(clock.seconds.values())
    print(f"{'between the stages':42}{rest / repeats * 1e3:9.2f} ms {rest / total:6.1%}")
    print(f"{'all':42}{total / repeats * 1e3:9.2f} ms")


if __name__ == "__main__":
    sys.exit(main())
