"""Sees a torch model's activations from outside: hooks on its modules, and wrappers around RoPE and attention calls.

The peer is not changed: hooks only look, and the wrapper calls what it wraps. What one forward shows goes to the dump
at once, as the taps that are read from it: so nothing is kept twice, and of a case that is repeated nothing at all.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conformance.activations import Dump
from conformance.cases import picked
from conformance.cases.picked import Picked
from conformance.peers.torch.tensors import to_array
from t5g2ref.taps import Tap

HALVES = {
    "new_keys": "keys",
    "own_keys": "keys",
    "cross_keys": "keys",
    "own_values": "values",
    "cross_values": "values",
}
"""Parts of an attention's keys and values, which it gets in one tensor."""

ROTATE = "apply_rotary_pos_emb"  # as every model file of transformers calls it: (q, k, cos, sin, …) → (q, k)


class Capture:
    """Everything seen in one forward of `model`.

    Args:
        model: a T5Gemma2 model with a `.model` inside, or any module tree with the same names.
        taps: the rows of the table that may be asked for.
        batch, cross_length: rows and encoder positions of the run; shared tables and merged keys are cut by them.
        chosen: of a run that is too long to show, the tokens that are kept; None for all.
    """

    def __init__(
        self, model: torch.nn.Module, taps: list[Tap], batch: int, cross_length: int, chosen: Picked | None = None
    ) -> None:
        self._batch, self._cross_length, self._chosen = batch, cross_length, chosen
        self._modules = {_canonical(name): module for name, module in model.named_modules()}
        self._paths = {id(module): name for name, module in self._modules.items()}
        self._taps = [tap for tap in taps if ":" in tap.peer]  # the others are what the model returns
        self._shown = {self._place(tap): tap for tap in self._taps} if chosen is not None else {}
        self._queries: dict[str, int] = {}  # path of an attention → how many it had
        self._cuda = next((p.device for p in model.parameters() if p.is_cuda), None)
        self._inside = ""  # path of the attention that was entered last
        self._seen = Counter[str]()  # "path:what" → how often it was seen in this forward
        self._read_from: dict[tuple[str, int], list[Tap]] = {}  # what was seen, and when → the taps that it gives
        self._dump: Dump | None = None

    @contextmanager
    def recording(self, dump: Dump, wanted: Iterable[Tap]) -> Iterator[None]:
        """Put hooks in place inside the block. What they see goes to the newest call of `dump`: those of `wanted`."""
        self._seen.clear()
        self._dump, self._read_from = dump, defaultdict(list)
        for tap in wanted:
            if ":" in tap.peer:
                path, what, index = self._place(tap)
                self._read_from[f"{path}:{HALVES.get(what, what)}", index].append(tap)
        homes: set[str] = set()  # the files that attentions are written in
        with ExitStack() as stack:
            for path, what in {self._place(tap)[:2] for tap in self._taps}:
                module = self._modules.get(path)
                if module is not None and what == "in":
                    handle = module.register_forward_pre_hook(self._before(path), with_kwargs=True)
                    stack.callback(handle.remove)
                elif module is not None and what == "rope_keys":
                    stack.callback(module.register_forward_pre_hook(self._entering(path)).remove)
                    homes.add(type(module).__module__)
                elif module is not None:
                    handle = module.register_forward_hook(self._after(path, what), with_kwargs=True)
                    stack.callback(handle.remove)
            for home in homes:
                if (true := getattr(sys.modules[home], ROTATE, None)) is not None:
                    stack.enter_context(patch.object(sys.modules[home], ROTATE, self._rotating(true)))
            original = type(ALL_ATTENTION_FUNCTIONS).get_interface
            stack.enter_context(patch.object(type(ALL_ATTENTION_FUNCTIONS), "get_interface", self._wrapped(original)))
            yield

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._inside = path

        return enter

    def _rotating(self, true: Callable[..., Any]) -> Callable[..., Any]:
        """RoPE whose keys are kept: those that reach the attention call have been through the cache."""

        def rotate(q: Any, k: Any, cos: Any, sin: Any, **how: Any) -> Any:
            turned = true(q, k, cos, sin, **how)
            self._see(self._inside, "rope_keys", turned[1])
            return turned

        return rotate

    def returned(self, dump: Dump, taps: Iterable[Tap], values: dict[str, Any]) -> None:
        """Put what the model returned (logits, loss) into the newest call of `dump`."""
        for tap in taps:
            if ":" not in tap.peer and (value := values.get(tap.name)) is not None:
                dump.put(tap.name, to_array(value, dump.backend) if torch.is_tensor(value) else value)
        if self._cuda is not None:  # values are ready even for a library that uses another stream
            torch.cuda.synchronize(self._cuda)

    def _see(self, path: str, what: str, value: Any) -> None:
        """Show every tap that is read from this value; of a long run the tokens that are shown."""
        name, index = f"{path}:{what}", self._seen[f"{path}:{what}"]
        self._seen[name] += 1
        tap = self._shown.get((path, what, index))
        if tap is not None and torch.is_tensor(value) and what != "mask":  # which has these rows alone
            value = picked.shown(self._chosen, tap, value)
        for tap in self._read_from.get((name, index), ()):
            self._show(tap, path, value)
        if what == "keys" and not self._seen[f"{path}:rope_keys"]:  # its RoPE has another name
            for tap in self._read_from.get((f"{path}:rope_keys", index), ()):
                self._show(tap, path, self._half(path, "new_keys", value))

    def _show(self, tap: Tap, path: str, value: Any) -> None:
        """Put a tap into the dump. The model may change what it showed, so the dump keeps a copy, if anything."""
        assert self._dump is not None
        if not torch.is_tensor(value):
            if value is not None:
                self._dump.put(tap.name, value)
            return
        found = self._found(tap, path, value).detach()
        dense = found.contiguous()
        if self._cuda is not None:
            torch.cuda.current_stream(self._cuda).synchronize()  # another library reads it, in a stream of its own
        array, copied = to_array(dense, self._dump.backend), dense.data_ptr() != found.data_ptr()
        self._dump.put(tap.name, array, changing=not copied)

    def _before(self, path: str) -> Callable[..., None]:
        """A hook that keeps a module's input before it runs, and so even if it raises."""

        def hook(_: torch.nn.Module, args: Any, kwargs: Any) -> None:
            self._see(path, "in", args[0] if args else kwargs.get("hidden_states"))

        return hook

    def _after(self, path: str, what: str) -> Callable[..., None]:
        """A hook that keeps a module's output; for the rotary embedding, the table of one layer type."""

        def hook(_: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            part, _, kind = what.partition(":")
            if part in ("cos", "sin"):
                if kind == (args[2] if len(args) > 2 else kwargs.get("layer_type")):
                    self._see(path, what, output[part == "sin"])
            elif what == "out":
                self._see(path, what, output[0] if isinstance(output, tuple) else output)

        return hook

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_interface(registry: Any, *args: Any) -> Callable[..., Any]:
            function = original(registry, *args)

            def attention(module: torch.nn.Module, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any) -> Any:
                path = self._paths[id(module)]
                self._queries[path] = q.shape[2]
                for what, value in {"query": q, "keys": k, "values": v}.items():
                    self._see(path, what, value)
                self._see(path, "mask", _visible(*self._rows(path, mask, q), k))
                return function(module, q, k, v, mask, **kwargs)

            return attention

        return get_interface

    def _rows(self, path: str, mask: Any, q: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The mask and the queries that are shown: of a long run those of the chosen tokens."""
        tap = self._shown.get((path, "mask", 0))
        at = None if tap is None or self._chosen is None else self._chosen.at(tap)
        if at is None or (mask is not None and mask.shape[2] != q.shape[2]):
            return mask, q
        return None if mask is None else mask[:, :, at.tolist()], q[:, :, at.tolist()]

    def _place(self, tap: Tap) -> tuple[str, str, int]:
        """A tap's module path, what to see there, and in which call of the module."""
        path, what, *rest = tap.peer.split(":")
        module = ".".join(part for part in (tap.module, path) if part)
        if what in ("cos", "sin"):
            return module, f"{what}:{rest[0]}", 0
        return module, what, int(rest[0]) if rest else 0

    def _found(self, tap: Tap, path: str, value: torch.Tensor) -> torch.Tensor:
        """The tap's value, of the one that was seen."""
        _, what, _ = self._place(tap)
        value = self._half(path, what, value) if what in HALVES else value
        if tap.shape.startswith("I P") and value.ndim == 4:  # a convolution's (I, D, rows, columns)
            return value.flatten(2).transpose(1, 2)
        if what.startswith(("cos", "sin")):
            return value.expand(self._batch, *value.shape[1:])
        return value

    def _half(self, path: str, what: str, merged: torch.Tensor) -> torch.Tensor:
        """A part of the keys or values: new, own or cross.

        The decoder's attention gets own and cross ones in one tensor, the encoder's only own ones.
        """
        rows = self._queries[path]
        cross = self._cross_length if path.startswith("decoder.") else 0
        own = merged.shape[2] - cross
        if own < rows:  # too few keys: shown as they are, so that the judge finds the wrong length
            return merged
        cut = {"new": slice(own - rows, own), "own": slice(0, own), "cross": slice(own, None)}
        return merged[:, :, cut[what.split("_")[0]]]


def _canonical(name: str) -> str:
    name = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
    alone = name.partition(".")[0] in ("text_model", "vision_tower", "multi_modal_projector")  # of an encoder by itself
    return f"encoder.{name}" if alone else name


def _visible(mask: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """What an attention mask lets through, bool (B, T, S).

    None lets everything through. An additive mask lets through where it adds nothing.
    """
    if mask is None:
        return torch.ones(q.shape[0], q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    shown = mask if mask.dtype == torch.bool else mask == 0
    if (shown != shown[:, :1]).any():  # no mask of this model differs between heads: its shape will fail
        return shown
    return shown[:, 0].expand(q.shape[0], -1, -1)
