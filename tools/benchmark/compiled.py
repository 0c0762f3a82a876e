"""transformers' fastest decoding: a preallocated cache, and each step compiled as its own `generate` compiles it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import CompileConfig

from benchmark.theirs import Theirs
from benchmark.timing import Cannot, Work
from conformance.peers.torch import static_cache

SETTINGS: dict[str, Any] = {}
"""What differs from transformers' own settings: Inductor in its mode "reduce-overhead", CUDA graphs on a card."""


class Compiled(Theirs):
    """sdpa with a static cache, under `torch.compile`. Decoding alone: lengths that change are compiled again."""

    ungraded: Callable[[], Any] = staticmethod(torch.no_grad)  # as `generate` has it
    warmups = 2  # a graph is recorded some runs after it is compiled

    def close(self) -> None:
        super().close()
        self._compiled: Callable[..., Any] | None = None
        torch._dynamo.reset()  # recorded graphs hold memory

    def work(self, item: str) -> Work:
        if item != "decode":
            raise Cannot("it is measured in decoding alone, where shapes stay")
        torch._dynamo.reset()  # each length and batch has a graph of its own, none for any shape
        self._compiled = self._model.get_compiled_call(CompileConfig(**SETTINGS))
        return super().work(item)

    def _warm(self, cache: Any = None) -> tuple[Any, Any]:
        """The prefill is not compiled, as in `generate`. With the cache comes what it holds now."""
        lengths = {name: ids.shape[1] for name, ids in self._ids.items()}
        cache = static_cache.made(self._model.config, lengths["warm"] + lengths["steps"], lengths["source"])
        encoded, cache = super()._warm(cache)
        return encoded, (cache, [_kept(layer) for layer in _layers(cache)])

    def _copied(self, cache: Any) -> Any:
        """The warm content in the same memory: a graph knows its addresses."""
        cache, contents = cache
        for layer, content in zip(_layers(cache), contents, strict=True):
            for name, value in content.items():
                if isinstance(value, torch.Tensor):
                    getattr(layer, name).copy_(value)
                else:
                    setattr(layer, name, value)
        return cache

    @property
    def _step(self) -> Callable[..., Any]:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
        return self._compiled  # type: ignore[no-any-return]


def _layers(cache: Any) -> Iterator[Any]:
    yield from cache.self_attention_cache.layers
    yield from cache.cross_attention_cache.layers


def _kept(layer: Any) -> dict[str, Any]:
    """A layer's fields, tensors as copies."""
    return {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in vars(layer).items()}
