"""transformers' sides of the benchmark. The model is the one that the conformance suite judges, made by its peer."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from benchmark.ours import Inputs
from benchmark.timing import Work
from conformance.cases import catalogue as cases
from conformance.peers import find as peers
from conformance.peers.torch.releases import cache_name
from conformance.peers.torch.tensors import without_tf32
from conformance.target import Target

Tensor = torch.Tensor


def opened(target: Target, name: str) -> tuple[Any, Any]:
    """The peer of that name with the target's weights, and its language model."""
    peer: Any = peers.create(name)
    peer.open(target)
    return peer, peer.model(next(case for case in cases.build(target.config) if case.task == "lm"))


class Transformers:
    """The one set of weights on the device, and the models that share it; TF32 is off while it is open."""

    def __init__(self, target: Target, name: str) -> None:
        self._switches = ExitStack()
        self._switches.enter_context(without_tf32())
        try:
            self._peer, self._model = opened(target, name)
        except BaseException:
            self._switches.close()
            raise
        self.device: torch.device = self._model.get_input_embeddings().weight.device
        held = {p.data_ptr(): p.nbytes for p in self._tensors()}  # tied ones once
        self.weight_bytes = sum(held.values())

    def model(self, attention: str) -> Any:
        """T5Gemma2ForConditionalGeneration with that attention: another model of the same tensors."""
        other = copy.deepcopy(self._model, {id(tensor): tensor for tensor in self._tensors()})
        other.set_attn_implementation(attention)
        return other

    def close(self) -> None:
        self._peer.close()
        self._switches.close()
        del self._model
        released(self.device)

    def _tensors(self) -> Iterable[Tensor]:
        yield from self._model.parameters()
        yield from self._model.buffers()


class Theirs:
    """A T5Gemma2ForConditionalGeneration, called as its users call it, with a cache that grows.

    Args:
        name: of the column.
        weight_bytes: of all its tensors, shared ones too.

    Attributes:
        ungraded: how gradients are turned off.
        warmups: as in `Work`.
    """

    ungraded: Callable[[], Any] = staticmethod(torch.inference_mode)
    warmups = 0

    def __init__(self, name: str, model: Any, weight_bytes: int) -> None:
        self.name, self.weight_bytes = name, weight_bytes
        self._model = model
        table = model.get_input_embeddings().weight
        self.device: torch.device = table.device
        self._dtype: torch.dtype = table.dtype
        self._held = cache_name(type(model).forward)
        self._ids: dict[str, Tensor] = {}
        self._pixels: Any = None

    def close(self) -> None:
        del self._model

    def given(self, inputs: Inputs) -> None:
        """As `Ours.given`."""
        names = ("source", "target", "warm", "steps")
        self._ids = {name: torch.tensor(getattr(inputs, name), device=self.device) for name in names}
        self._pixels = torch.tensor(inputs.pixels, device=self.device, dtype=self._dtype)

    def work(self, item: str) -> Work:
        quiet = self.ungraded()  # a decorator
        if item == "decode":
            encoded, cache = quiet(self._warm)()
            return Work(
                run=quiet(lambda fresh: self._decode(encoded, fresh)),
                sample=_host,
                prepare=quiet(lambda: self._copied(cache)),
                check=quiet(lambda fresh: self._decode(encoded, fresh, self._ids["steps"])),
                warmups=self.warmups,
            )
        run = {"encode": self._encode, "forward": self._forward, "vision": self._vision}[item]
        return Work(quiet(lambda _: run()), _host)

    def exact_products(self) -> bool:
        """As `Ours.exact_products`."""
        x = torch.full((256, 256), 1 + 2.0**-20, device=self.device)
        return bool(((x @ torch.eye(256, device=self.device)) == x).all())

    def _encode(self) -> Tensor:
        return self._model.model.encoder(input_ids=self._ids["source"]).last_hidden_state

    def _forward(self) -> Tensor:
        ids = self._ids
        return self._model(input_ids=ids["source"], decoder_input_ids=ids["target"], use_cache=False).logits

    def _vision(self) -> Tensor:
        return self._model.model.encoder.get_image_features(self._pixels, return_dict=True).pooler_output

    def _warm(self, cache: Any = None) -> tuple[BaseModelOutput, Any]:
        """Without a cache the model makes its own."""
        encoded, given = BaseModelOutput(last_hidden_state=self._encode()), {self._held: cache}
        out = self._model(encoder_outputs=encoded, decoder_input_ids=self._ids["warm"], use_cache=True, **given)
        return encoded, getattr(out, self._held)

    def _copied(self, cache: Any) -> Any:
        """A step writes into the cache, so each repeat starts from a copy of the warm one."""
        return copy.deepcopy(cache)

    def _decode(self, encoded: BaseModelOutput, cache: Any, forced: Tensor | None = None) -> Tensor:
        """As `Ours._decode`."""
        new = self._ids["steps"][:, :1].contiguous()  # one layout in every step, or a graph were not enough
        for step in range(self._ids["steps"].shape[1]):
            given = new if forced is None else forced[:, step : step + 1].contiguous()
            out = self._step(encoder_outputs=encoded, decoder_input_ids=given, use_cache=True, **{self._held: cache})
            new = out.logits[:, -1].argmax(dim=-1, keepdim=True)
        return out.logits

    @property
    def _step(self) -> Callable[..., Any]:
        """What one step of decoding calls."""
        return self._model  # type: ignore[no-any-return]


class TorchMeter:
    """CUDA: the most that torch's allocator held, above what was in use when the call began: as `PoolMeter` counts."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()  # before it, the statistics cannot be reset
        self._device, self._mark = device, 0

    def start(self) -> None:
        released(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._mark = torch.cuda.memory_allocated(self._device)

    def read(self) -> int:
        return int(torch.cuda.max_memory_reserved(self._device) - self._mark)


def released(device: torch.device) -> None:
    """Give back what the allocator keeps."""
    gc.collect()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def embedding_rows(model: Any, rows: int) -> np.ndarray[Any, Any]:
    """The first rows of the table, to see that a loaded model holds the file's numbers."""
    return _host(model.get_input_embeddings().weight[:rows])


def _host(value: Tensor) -> np.ndarray[Any, Any]:
    return value.detach().double().cpu().numpy()
