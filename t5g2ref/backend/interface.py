"""The array library under the model: NumPy here, and the interface that another one fills.

`Numerics` owns the number type and the rounding points; a `Backend` owns the arrays: where they live, how two of them
are multiplied, and which operations have a faster twin. The model files see neither by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, Self, TypeVar

import numpy as np

from t5g2ref.backend import arena, crew
from t5g2ref.dtypes import WIDER

Array = Any
Twin = Callable[..., Any]
T = TypeVar("T")
RUNNING_WORK = 1 << 23  # elements of the result, times steps, that one running sum may touch


class BackendError(RuntimeError):
    """This backend cannot be used here; the message says what was expected, what was found and what to do."""


class Source(Protocol):
    """A tensor of a file, opened at its first element, as `Backend.load` takes it (`stored.Stored`)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements in the file: float64, float32, float16 or bfloat16."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def fill(self, part: np.ndarray[Any, Any]) -> None:
        """Read the next `part.size` elements into `part`: 1-D, dense, of the stored dtype."""

    def finite(self, part: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
        """`part` in `dtype`, rounded once; WeightsError where it is not finite."""

    def array(self, dtype: str) -> np.ndarray[Any, Any]:
        """All of it as a NumPy array in `dtype`; WeightsError where it is not finite."""

    def refuse(self, dtype: str) -> NoReturn:
        """Raise the WeightsError of a tensor that was found not to be finite in `dtype`."""


class Arena(Protocol):
    """Memory that processes of this machine share: one writes it, and those that it starts read it.

    Attributes:
        bytes: all of it, as one array of uint8.
    """

    bytes: Array

    def key(self) -> Any:
        """What a process that is started opens it by; what was written is there then. BackendError where none can."""

    def close(self) -> None:
        """Nobody opens it any more. It is freed when no array is in it."""


class Backend:
    """NumPy. A subclass overrides what its library does otherwise.

    Attributes:
        name: as given on a command line.
        xp: the array namespace, NumPy's function names.
        native_half: whether bfloat16 and float16 arrays compute; NumPy emulates both on float32 arrays.
        block_rows, block_scores: queries that attention takes at a time, and the most scores of all heads; here, so
            few that they stay in the cache (128 MiB at most in float64).
        twins: operation name → a function (definition, nx, *arguments) that stands in for the definition, or None.
    """

    name = "numpy"
    xp: Any = np
    native_half = False
    block_rows = 128
    block_scores = 1 << 24
    twins: Mapping[str, Twin | None] = MappingProxyType({})

    def scope(self) -> AbstractContextManager[object]:
        """Inside it, new arrays and kernels belong to this backend's device, stream and memory pool. Here it is a call
        of the model, whose jobs may have threads."""
        return crew.together() if self.xp is np else nullcontext()

    def host(self, x: Array) -> np.ndarray[Any, Any]:
        """x as a NumPy array; waits for it where it is still being computed."""
        return np.asarray(x)

    def load(self, source: Source, dtype: str) -> Array:
        """A tensor of a file as an array of this backend in `dtype`: widened exactly or rounded once to nearest even.

        Raises:
            WeightsError: a value that is not finite, in the file or in `dtype`; a file that changed.
            BackendError: no room for it.
        """
        return source.array(dtype)

    def kept(self, stored: str, dtype: str, *, narrow: bool = False) -> str:
        """The type in which a model in `dtype` keeps a weight stored as `stored`; narrower only where that is exact,
        since `Numerics.weight` widens at use. `narrow` asks for the least memory."""
        return stored if narrow and stored in WIDER[dtype] else dtype

    def with_twins(self, twins: Mapping[str, Twin | None]) -> Self:
        """This backend, the same device and pool, with these twins in place of or beside its own. None takes one away:
        the definition is used, and the twins of its parts are seen."""
        other = copy.copy(self)
        other.twins = MappingProxyType({**self.twins, **twins})
        return other

    def require(self, bytes_needed: int, what: str) -> None:
        """BackendError where this backend has no room for so many bytes of `what` ("the weights of …"). Host memory is
        the system's affair."""

    def arena(self, size: int) -> Arena:
        """Memory of so many bytes that other processes can open. BackendError where there is none."""
        try:
            return arena.HostArena(size)
        except OSError as error:
            raise BackendError(f"there is no memory that processes share: {error}") from error

    def opened(self, key: Any) -> Array:
        """The bytes of another process's arena, which are not to be written. BackendError where they cannot be had."""
        try:
            return arena.opened(key)
        except OSError as error:
            raise BackendError(f"another process's memory cannot be opened: {error}") from error

    def describe(self) -> dict[str, str]:
        """Libraries and device with their versions, for reports."""
        return {"numpy": np.__version__}

    def product(self, a: Array, b: Array, dtype: np.dtype[Any]) -> Array:
        """a (…, M, K) @ b (…, K, N), summed at least in float32 and given as `dtype`. Here both have it already."""
        return self.xp.matmul(a, b)

    def running(self, a: Array, b: Array) -> Array:
        """a @ b as running sums over K, in as many steps as RUNNING_WORK allows; both float32 or float64."""
        depth, size = a.shape[-1], a[..., 0].size * b.shape[-1]
        if 1 < size <= RUNNING_WORK // max(1, depth):  # every step by itself; NumPy adds rows one after the other
            axes = max(a.ndim, b.ndim)
            a, b = a[(None,) * (axes - a.ndim)], b[(None,) * (axes - b.ndim)]
            rest = range(axes - 2)
            left, right = a.transpose(axes - 1, *rest, axes - 2), b.transpose(axes - 2, *rest, axes - 1)
            left, right = left.copy(), right.copy()  # contiguous, or K would not be the slowest axis
            return (left[..., None] * right[..., None, :]).sum(axis=0)
        cuts = np.linspace(0, depth, min(depth, max(4, RUNNING_WORK // max(1, size))) + 1).astype(int)
        total = self.xp.matmul(a[..., : cuts[1]], b[..., : cuts[1], :])
        for first, last in pairwise(cuts[1:]):
            total += self.xp.matmul(a[..., first:last], b[..., first:last, :])
        return total

    @property
    def threads(self) -> int:
        """How many threads `each` would have now. A device has its own, and 1 here."""
        return crew.threads() if self.xp is np else 1

    def each(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """The jobs' results, in their order; they may be made side by side."""
        return crew.each(jobs) if self.xp is np else [job() for job in jobs]

    def join(self, arrays: list[Array], axis: int) -> Array:
        """The arrays one behind the other."""
        return self.xp.concatenate(arrays, axis=axis)


NUMPY = Backend()
