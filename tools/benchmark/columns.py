"""Which sides a benchmark has: ours on each backend, transformers in each way that was asked for, and engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from benchmark import ctranslate
from benchmark.options import WAYS, Options
from benchmark.ours import Inputs, Ours
from benchmark.result import Column
from benchmark.theirs import Theirs, Transformers
from benchmark.timing import Work, on_cpu
from conformance.target import Target

WORDS = {
    "sdpa": "transformers, sdpa attention, a cache that grows",
    "eager": "transformers, eager attention, a cache that grows",
    "compiled": "transformers, sdpa, a static cache, each decoding step under torch.compile",
    ctranslate.NAME: "CTranslate2 in float32, converted by itself from the same weights",
}


class Side(Protocol):
    """One column with its weights in place."""

    name: str
    weight_bytes: int

    def given(self, inputs: Inputs) -> None:
        """Take what the items are run on."""

    def work(self, item: str) -> Work:
        """What to time. Raises Cannot for an item that this side does not have."""

    def close(self) -> None:
        """Give back what it holds."""


def asked(options: Options) -> list[Column]:
    """The columns, in the order of the tables."""
    ours = [Column(backend.name, "ours", f"t5g2ref on {backend.name}") for backend in options.backends]
    return ours + [_other(name, options) for name in options.against]


def _other(name: str, options: Options) -> Column:
    if name in WAYS:
        return Column(name, "transformers", WORDS[name])
    absent = ctranslate.missing() if on_cpu(options.backends[0]) else "here on the CPU alone, which is --backend numpy"
    return Column(name, "engine", WORDS[name], absent)


def openers(
    options: Options, target: Target, dtype: Any, shared: Transformers | None = None
) -> dict[str, Callable[[], Side]]:
    """For each column what opens it in this dtype; without `shared` for none of transformers'."""
    found: dict[str, Callable[[], Side]] = {
        backend.name: lambda backend=backend: Ours(target.config, target.weights, dtype, backend)  # type: ignore[misc]
        for backend in options.backends
    }
    if shared is not None:
        ways = (name for name in options.against if name in WAYS)
        found |= {name: lambda name=name: _way(name, shared) for name in ways}  # type: ignore[misc]
    if ctranslate.NAME in options.against:
        threads = options.threads or torch.get_num_threads()
        found[ctranslate.NAME] = lambda: ctranslate.CTranslate2(target, threads)
    names = (*(backend.name for backend in options.backends), *options.against)
    return {name: found[name] for name in names if name in found}


def _way(name: str, shared: Transformers) -> Theirs:
    if name != "compiled":
        return Theirs(name, shared.model(name), shared.weight_bytes)
    from benchmark.compiled import Compiled  # the compiler takes as long to import as torch does

    return Compiled(name, shared.model("sdpa"), shared.weight_bytes)
