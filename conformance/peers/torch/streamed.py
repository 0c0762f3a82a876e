"""A torch model larger than memory: its own classes, whose layers hold weights only while they run.

The model is built without memory for parameters. Before a module inside a layer runs, its own parameters are put in
place; after it they are taken away. What is in no layer stays. Nothing of the peer's arithmetic is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from t5g2ref.on_demand import layer_of

Read = Callable[[str], torch.Tensor]
"""Gives the tensor of a parameter by its canonical name."""


@contextmanager
def without_memory() -> Iterator[None]:
    """Parameters that modules make in the block are on the meta device. Buffers are made as always."""
    true = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        true(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = empty(parameter)

    with patch.object(torch.nn.Module, "register_parameter", register):
        yield


def empty(parameter: torch.Tensor) -> torch.nn.Parameter:
    """A parameter of that shape and type that has no memory."""
    return torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)


def stream(model: torch.nn.Module, names: dict[str, str], read: Read, device: str) -> None:
    """Give the model its weights: those in no layer now, the others whenever their module runs.

    Args:
        names: the model's name of each parameter → the canonical one.
    """
    settled: dict[str, torch.nn.Parameter] = {}  # each once: the table has three names
    for path, module in model.named_modules():
        own = {n: names[f"{path}.{n}".removeprefix(".")] for n, p in module._parameters.items() if p is not None}
        for place, name in own.items():
            if not layer_of(name):
                settled[name] = settled[name] if name in settled else _read(module, place, name, read)
                module._parameters[place] = settled[name]
        if passing := {place: name for place, name in own.items() if layer_of(name)}:
            module.register_forward_pre_hook(_enter(passing, read))
            module.register_forward_hook(_leave(passing), always_call=True)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _read(module: torch.nn.Module, place: str, name: str, read: Read) -> torch.nn.Parameter:
    """The parameter for that place of a module. RuntimeError where it does not fit."""
    held, found = module.get_parameter(place), read(name)
    if held.shape != found.shape or held.dtype != found.dtype:
        expected = f"{held.dtype} {tuple(held.shape)}"
        raise RuntimeError(f"{name}: the model expects {expected}, found {found.dtype} {tuple(found.shape)}")
    return torch.nn.Parameter(found, requires_grad=False)


def _enter(own: dict[str, str], read: Read) -> Callable[..., None]:
    def enter(module: torch.nn.Module, _: Any) -> None:
        for place, name in own.items():
            module._parameters[place] = _read(module, place, name, read)

    return enter


def _leave(own: dict[str, str]) -> Callable[..., None]:
    def leave(module: torch.nn.Module, *_: Any) -> None:
        for place in own:
            module._parameters[place] = empty(module.get_parameter(place))

    return leave
