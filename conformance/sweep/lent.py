"""Weights that the judges of a run share: one process makes them, and the others read its memory.

A process that could not would make them again, which takes seconds at 270m and their memory once more for each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conformance.arrays import has_device, release
from conformance.checkpoints import SINGLE
from conformance.target import Target
from t5g2ref.backend import Backend, BackendError
from t5g2ref.backend.interface import Arena
from t5g2ref.config import Config
from t5g2ref.dtypes import HALF, DType

ALIGNED = 256  # bytes, at a multiple of which every tensor begins, as an allocation of CUDA's does
FAILURES = (BackendError, OSError, MemoryError)


class Place(NamedTuple):
    """Where a tensor lies in an arena: its first byte, its type by name, and its shape."""

    start: int
    dtype: str
    shape: tuple[int, ...]

    def array(self, there: Any) -> Any:
        """The tensor, a view of the arena's bytes."""
        kind = np.dtype(HALF.get(self.dtype, self.dtype))
        return there[self.start : self.start + prod(self.shape) * kind.itemsize].view(kind).reshape(self.shape)


@dataclass(frozen=True)
class Lent:
    """A `Target` as another process makes it again, without a copy of its weights.

    Args:
        key: what it opens the arena by.
        weights: name → place.
        rounded: the same, of `Target.rounded`.
    """

    name: str
    config: Config
    folder: Path | None
    notes: tuple[str, ...]
    key: Any
    weights: Mapping[str, Place]
    rounded: Mapping[str, Mapping[str, Place]]


class Loan(NamedTuple):
    """What is lent, or why nothing is; neither where nobody tried."""

    lent: tuple[Lent, ...] = ()
    why: str = ""


@contextmanager
def lending(targets: Sequence[Target], halves: Collection[DType]) -> Iterator[Loan]:
    """Inside it, processes that are started can borrow these checkpoints, and their weights rounded to these types.

    The arrays of `targets` become views of what is lent, so that they are there once. Streamed ones stay as they are.
    """
    arenas: list[Arena] = []
    try:
        try:
            shared = () if any(target.streamed for target in targets) else targets
            loan = Loan(tuple(_lent(target, halves, arenas) for target in shared))
        except FAILURES as error:
            loan = Loan(why=f"each process made the weights again: {error}")
            _close(arenas)
        yield loan
    finally:
        _close(arenas)


def _close(arenas: list[Arena]) -> None:
    while arenas:
        arenas.pop().close()


def _lent(target: Target, halves: Collection[DType], arenas: list[Arena]) -> Lent:
    """The target, moved into an arena that is put among `arenas`."""
    backend = target.backend
    arena = backend.arena(_size(target, halves))
    arenas.append(arena)
    packing = _Packing(arena, backend)
    target.move(packing.put, halves)
    rounded = {str(dtype): packing.places(target.rounded(dtype)) for dtype in halves}
    release(backend)  # what the weights were in before
    names = packing.places(target.weights)
    return Lent(target.name, target.config, target.folder, target.notes, arena.key(), names, rounded)


def _size(target: Target, halves: Collection[DType]) -> int:
    """Bytes for the weights and for as many of each half type. On the host, what is on its grid is not stored again."""
    one = {np.dtype(HALF[dtype]).itemsize if target.backend.native_half else SINGLE for dtype in halves}
    half = max(one, default=0)
    return sum(_end(value.nbytes) + len(halves) * _end(prod(value.shape) * half) for value in target.weights.values())


def _end(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


class _Packing:
    """Lays arrays in an arena, one behind the other."""

    def __init__(self, arena: Arena, backend: Backend) -> None:
        self._arena, self._backend, self._end = arena, backend, 0
        self._of: dict[int, Place] = {}  # id of an array that `put` made

    def put(self, value: Any) -> Any:
        """A copy of it there, read-only where the library has that."""
        place = Place(self._end, str(value.dtype), tuple(value.shape))
        self._end += _end(value.nbytes)
        copy = place.array(self._arena.bytes)
        with self._backend.scope():
            copy[...] = value
        if not has_device(self._backend):
            copy.flags.writeable = False
        self._of[id(copy)] = place
        return copy

    def places(self, arrays: Mapping[str, Any]) -> dict[str, Place]:
        """Where they lie, by name."""
        return {name: self._of[id(value)] for name, value in arrays.items()}


def borrowed(lent: Lent, backend: Backend) -> Target:
    """The target in another process. BackendError where its memory cannot be opened there."""
    there, arrays = backend.opened(lent.key), dict[Place, Any]()

    def found(places: Mapping[str, Place]) -> dict[str, Any]:
        for place in places.values():
            if place not in arrays:  # what is on a half type's grid is one array
                arrays[place] = place.array(there)
        return {name: arrays[place] for name, place in places.items()}

    target = Target(lent.name, lent.config, found(lent.weights), lent.folder, backend, lent.notes)
    return target.with_rounded({dtype: found(places) for dtype, places in lent.rounded.items()})
