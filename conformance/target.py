"""The checkpoint under test: its geometry and weights, and where it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from t5g2ref.backend import NUMPY, Backend
from t5g2ref.config import Config
from t5g2ref.dtypes import HALF, DType
from t5g2ref.numerics import Numerics
from t5g2ref.on_demand import OnDemand, mapped


@dataclass(frozen=True)
class Target:
    """The checkpoint under test.

    Args:
        name: as shown in reports.
        config: its geometry.
        weights: canonical name → float32 array of the backend. On demand for a model larger than memory: then an array
            may be narrower where that is exact.
        folder: the checkpoint on disk, for a peer with a loader of its own; None for synthetic weights.
        backend: where the judge computes.
        notes: what is to be said of its files.
    """

    name: str
    config: Config
    weights: Mapping[str, Any]
    folder: Path | None = None
    backend: Backend = NUMPY
    notes: tuple[str, ...] = ()
    _rounded: dict[str, Mapping[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def streamed(self) -> bool:
        """Whether only a layer or two are in memory at a time."""
        return isinstance(self.weights, OnDemand)

    def rounded(self, dtype: DType) -> Mapping[str, Any]:
        """The weights that a peer in `dtype` runs with, made once: rounded to the grid of a half type, as native
        arrays of it where the backend has them. On NumPy those that are on the grid already are the very same arrays.
        """
        if dtype not in HALF:
            return self.weights
        if dtype not in self._rounded:
            nx = Numerics(dtype, backend=self.backend)
            with nx.scope():
                self._rounded[dtype] = mapped(self.weights, lambda _, value: _on_grid(nx, value))
        return self._rounded[dtype]

    def with_rounded(self, rounded: Mapping[str, Mapping[str, Any]]) -> Target:
        """This one, with what `rounded` returns made already."""
        self._rounded.update(rounded)
        return self

    def move(self, put: Callable[[Any], Any], halves: Iterable[DType]) -> None:
        """What `put` makes of each array takes its place, of those rounded to `halves` too. An array is let go before
        the next is put, so that the weights are there once. They are not streamed."""
        assert not self.streamed
        self._rounded.clear()
        weights = cast(dict[str, Any], self.weights)
        for name in weights:
            weights[name] = put(weights[name])
        for dtype in halves:
            nx = Numerics(dtype, backend=self.backend)
            with nx.scope():
                self._rounded[dtype] = {name: _put_on_grid(nx, value, put) for name, value in weights.items()}


def _put_on_grid(nx: Numerics, value: Any, put: Callable[[Any], Any]) -> Any:
    rounded = _on_grid(nx, value)
    return value if rounded is value else put(rounded)


def _on_grid(nx: Numerics, value: Any) -> Any:
    if value.dtype == HALF[nx.dtype]:
        return value
    rounded = nx.array(value)
    return value if nx.emulated and bool((rounded == value).all()) else rounded
