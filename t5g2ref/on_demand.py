"""Weights that are read as a layer is entered and let go when the next ones are: for models larger than memory.

A stack goes through its layers one after the other, and so do several runs of one model that meet at every tap. So two
layers in memory are enough. What belongs to no layer (the table, the last norms, the projector) is read once and kept.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import RLock
from typing import Any

Array = Any
Read = Callable[[str], Array]

HELD = 2  # layers in memory: the one that a run is in, and the one that another has not left
_LAYER = re.compile(r"(.+\.layers\.\d+)\.")


class OnDemand(Mapping[str, Array]):
    """Canonical name → array, read when it is asked for together with the rest of its layer.

    Args:
        names: every name, in order.
        read: gives a tensor, always the same one for a name; it may be called in several threads.
        held: how many layers are kept.
        base: what `read` takes from, where that is on demand too.
    """

    def __init__(self, names: Iterable[str], read: Read, held: int = HELD, base: OnDemand | None = None) -> None:
        self._read, self._most, self._base = read, held, base
        self._names = dict.fromkeys(names)
        self._layers: dict[str, list[str]] = {}
        for name in self._names:
            if layer := layer_of(name):
                self._layers.setdefault(layer, []).append(name)
        self._held: OrderedDict[str, dict[str, Array]] = OrderedDict()
        self._kept: dict[str, Array] = {}
        self._lock = RLock()  # two runs want the same layer at the same time: one reads, the other waits

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        with self._lock:
            layer = layer_of(name)
            if layer:
                return self._entered(layer)[name]
            if name not in self._kept:
                self._kept[name] = self._read(name)
            return self._kept[name]

    @property
    def held_bytes(self) -> int:
        """Bytes of the arrays in memory; one that others hold too counts."""
        with self._lock:
            arrays = [*self._kept.values(), *(value for layer in self._held.values() for value in layer.values())]
            return sum(value.nbytes for value in arrays)

    def mapped(self, change: Callable[[str, Array], Array]) -> OnDemand:
        """These names, each with `change(name, array)`. One that is returned as it is takes no memory again."""
        return OnDemand(self, lambda name: change(name, self[name]), self._most, self)

    def extended(self, more: Mapping[str, Array]) -> OnDemand:
        """These and `more`, which goes before."""
        read = lambda name: more[name] if name in more else self[name]  # noqa: E731
        return OnDemand([*self, *more], read, self._most, self)

    def settled(self) -> dict[str, Array]:
        """Lets go of every layer, and returns what stays in memory: the tensors of no layer."""
        with self._lock:
            self._held.clear()
        if self._base is not None:
            self._base.settled()
        return {name: self[name] for name in self if not layer_of(name)}

    def _entered(self, layer: str) -> dict[str, Array]:
        if layer in self._held:
            self._held.move_to_end(layer)
            return self._held[layer]
        while len(self._held) >= self._most:  # before the next is read, so that there are never more
            self._held.popitem(last=False)
        names = self._layers[layer]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            self._held[layer] = dict(zip(names, pool.map(self._read, names), strict=True))
        return self._held[layer]


def layer_of(name: str) -> str:
    """The layer that a parameter is in, "decoder.layers.3"; "" for one that is in none."""
    match = _LAYER.match(name)
    return match[1] if match else ""


def extended(weights: Mapping[str, Array], more: Mapping[str, Array]) -> Mapping[str, Array]:
    """Weights and more of them, which go before: on demand where the first are."""
    return weights.extended(more) if isinstance(weights, OnDemand) else {**weights, **more}


def mapped(weights: Mapping[str, Array], change: Callable[[str, Array], Array]) -> Mapping[str, Array]:
    """Every name with `change(name, array)`: on demand where the weights are."""
    if isinstance(weights, OnDemand):
        return weights.mapped(change)
    return {name: change(name, value) for name, value in weights.items()}
