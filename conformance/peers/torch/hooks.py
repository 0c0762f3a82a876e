"""Sees a torch model's activations from outside: hooks on its modules, and a wrapper around its attention calls.

The peer is not changed: hooks only look, and the wrapper calls what it wraps. What one forward shows is kept under
(module path, what, how many times before), on the model's device while there is room. The tap table then reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conformance.activations import DEVICE_SHARE, Dump
from conformance.peers.torch.tensors import to_array
from t5g2ref.taps import Tap


class Capture:
    """Everything seen in one forward of `model`.

    Args:
        model: a T5Gemma2 model with a `.model` inside, or any module tree with the same names.
        taps: the rows of the table that may be asked for.
        batch, cross_length: rows and encoder positions of the run, by which shared tables and merged keys are cut.
    """

    def __init__(self, model: torch.nn.Module, taps: list[Tap], batch: int, cross_length: int) -> None:
        self._batch, self._cross_length = batch, cross_length
        self._seen: dict[str, list[Any]] = {}
        self._modules = {_canonical(name): module for name, module in model.named_modules()}
        self._paths = {id(module): name for name, module in self._modules.items()}
        self._taps = [tap for tap in taps if ":" in tap.peer]  # the others are what the model returns
        self._cuda = next((p.device for p in model.parameters() if p.is_cuda), None)
        self._room = 0 if self._cuda is None else torch.cuda.mem_get_info(self._cuda)[0] // DEVICE_SHARE

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hooks are in place inside the block and gone after it; what was seen before is forgotten."""
        self._seen.clear()
        with ExitStack() as stack:
            for path, what in {self._place(tap)[:2] for tap in self._taps}:
                module = self._modules.get(path)
                if module is not None and what == "in":
                    handle = module.register_forward_pre_hook(self._before(path), with_kwargs=True)
                    stack.callback(handle.remove)
                elif module is not None:
                    handle = module.register_forward_hook(self._after(path, what), with_kwargs=True)
                    stack.callback(handle.remove)
            original = type(ALL_ATTENTION_FUNCTIONS).get_interface
            stack.enter_context(patch.object(type(ALL_ATTENTION_FUNCTIONS), "get_interface", self._wrapped(original)))
            yield

    def into(self, dump: Dump, taps: list[Tap], extra: dict[str, Any]) -> None:
        """Put every one of `taps` that was seen into the newest call of `dump`; `extra` holds what the model
        returned (logits, loss)."""
        for tap in taps:
            value = extra.get(tap.name) if ":" not in tap.peer else self._find(tap)
            if value is not None:
                dump.put(tap.name, to_array(value, dump.backend) if torch.is_tensor(value) else value)
        self._seen.clear()
        if self._cuda is not None:  # the judge's library launches on the same stream; this depends on no such thing
            torch.cuda.synchronize(self._cuda)

    def _keep(self, path: str, what: str, value: Any) -> None:
        self._seen.setdefault(f"{path}:{what}", []).append(self._copied(value))

    def _copied(self, value: Any) -> Any:
        """A copy at the moment of seeing, so that a change in place further on cannot reach it."""
        if not torch.is_tensor(value):
            return value
        self._room -= value.nbytes if value.is_cuda else 0
        return value.detach().cpu() if value.is_cuda and self._room < 0 else value.detach().clone()

    def _before(self, path: str) -> Callable[..., None]:
        """What goes in is seen at once: a module that raises has been given something all the same."""

        def hook(_: torch.nn.Module, args: Any, kwargs: Any) -> None:
            self._keep(path, "in", args[0] if args else kwargs.get("hidden_states"))

        return hook

    def _after(self, path: str, what: str) -> Callable[..., None]:
        """What comes out; of the rotary embedding, which is called once for each layer type, that type's table."""

        def hook(_: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            part, _, kind = what.partition(":")
            if part in ("cos", "sin"):
                if kind == (args[2] if len(args) > 2 else kwargs.get("layer_type")):
                    self._keep(path, what, output[part == "sin"])
            elif what == "out":
                self._keep(path, what, output[0] if isinstance(output, tuple) else output)

        return hook

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_interface(registry: Any, *args: Any) -> Callable[..., Any]:
            function = original(registry, *args)

            def attention(module: torch.nn.Module, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any) -> Any:
                seen = {"query": q, "keys": k, "values": v, "mask": _visible(mask, q, k)}
                for what, value in seen.items():
                    self._keep(self._paths[id(module)], what, value)
                return function(module, q, k, v, mask, **kwargs)

            return attention

        return get_interface

    def _place(self, tap: Tap) -> tuple[str, str, int]:
        """Module path, what, and which call."""
        path, what, *rest = tap.peer.split(":")
        module = ".".join(part for part in (tap.module, path) if part)
        if what in ("cos", "sin"):
            return module, f"{what}:{rest[0]}", 0
        return module, what, int(rest[0]) if rest else 0

    def _find(self, tap: Tap) -> Any:
        path, what, index = self._place(tap)
        halves = {"new_keys": "keys", "own_keys": "keys", "cross_keys": "keys"}
        halves |= {"own_values": "values", "cross_values": "values"}
        seen = self._seen.get(f"{path}:{halves.get(what, what)}", [])
        if index >= len(seen):
            return None
        value = self._half(path, what, seen[index]) if what in halves else seen[index]
        if tap.shape.startswith("I P") and value.ndim == 4:  # a convolution's (I, D, rows, columns)
            return value.flatten(2).transpose(1, 2)
        if what.startswith(("cos", "sin")):
            return value.expand(self._batch, *value.shape[1:])
        return value

    def _half(self, path: str, what: str, merged: torch.Tensor) -> torch.Tensor:
        """The decoder's attention is given own keys and cross keys in one tensor; the encoder's only its own."""
        rows = self._seen[f"{path}:query"][0].shape[2]
        cross = self._cross_length if path.startswith("decoder.") else 0
        own = merged.shape[2] - cross
        if own < rows:  # fewer keys than there must be: shown as they are, for the judge to find the wrong length
            return merged
        cut = {"new": slice(own - rows, own), "own": slice(0, own), "cross": slice(own, None)}
        return merged[:, :, cut[what.split("_")[0]]]


def _canonical(name: str) -> str:
    name = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
    alone = name.partition(".")[0] in ("text_model", "vision_tower", "multi_modal_projector")  # of an encoder by itself
    return f"encoder.{name}" if alone else name


def _visible(mask: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """What an attention mask lets through, bool (B, T, S): None is everything; additive masks let through where
    they add nothing."""
    if mask is None:
        return torch.ones(q.shape[0], q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    shown = mask if mask.dtype == torch.bool else mask == 0
    if (shown != shown[:, :1]).any():  # differs between heads, as no mask of this model: the shape will tell
        return shown
    return shown[:, 0].expand(q.shape[0], -1, -1)
