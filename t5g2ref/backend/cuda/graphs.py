"""Calls as CUDA graphs: one launch where Python would queue some hundred kernels, and the card would wait for it.

The first call of a shape is the definition's, the second is recorded, and later ones are replayed: inputs are copied
to where the recording has them, results from there. What cannot be recorded is the definition's. Recordings have memory
of their own, so there are none under a memory limit.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary, finalize

import cupy

from t5g2ref.backend.cuda import blas
from t5g2ref.trace import OFF, Trace

Array = Any
Definition = Callable[..., Any]
NONE: Mapping[str, Any] = MappingProxyType({})
MOST, FORMS = 4, 256  # recordings that are kept of each stack of weights, and forms of inputs that are remembered
LONGEST = 4096  # tokens of all rows; longer calls keep the card busy anyway
WORKSPACE = 32 << 20  # bytes for cuBLAS, which it may not take for itself while it is recorded


class Library:
    """cuBLAS itself: CuPy's calls refuse while a graph is recorded. Arguments are those of cupy.cuda.cublas."""

    def __init__(self, stream: Any, workspace: Array) -> None:
        self.handle = blas.new_handle()
        library: Any = ctypes.CDLL(
            f"libcublas.so.{cupy.cuda.cublas.getVersion(self.handle) // 10000}"
        )  # CuPy has loaded it
        pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
        matrix, head, tail = [pointer, number, number], [pointer, *[number] * 5, pointer], [number, number]
        library.cublasGemmEx.argtypes = [*head, *matrix, *matrix, pointer, *matrix, *tail]
        many = [*head, *matrix, long, *matrix, long, pointer, *matrix, long, number, *tail]
        library.cublasGemmStridedBatchedEx.argtypes = many
        self._library = library
        self._check(library.cublasSetStream_v2(pointer(self.handle), pointer(stream.ptr)))
        size = ctypes.c_size_t(workspace.nbytes)
        self._check(library.cublasSetWorkspace_v2(pointer(self.handle), pointer(workspace.data.ptr), size))

    def gemmEx(self, *arguments: int) -> None:
        self._check(self._library.cublasGemmEx(*arguments))

    def gemmStridedBatchedEx(self, *arguments: int) -> None:
        self._check(self._library.cublasGemmStridedBatchedEx(*arguments))

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise cupy.cuda.cublas.CUBLASError(status)


class Recording:
    """One call, recorded with a memory pool of its own; it lives as long as the graph."""

    def __init__(self, call: Callable[[Any], Any], inputs: Any) -> None:
        self._pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.get_current_stream().synchronize()
        with stream, cupy.cuda.using_allocator(self._pool.malloc):
            self._inputs = mapped(lambda x: x.copy(), inputs)
            self._workspace = cupy.empty(WORKSPACE, cupy.uint8)
            self._library = Library(stream, self._workspace)
            finalize(self, cupy.cuda.cublas.destroy, self._library.handle)
            with self._through():
                call(self._inputs)  # so that all kernels and all memory are there
                stream.synchronize()
                stream.begin_capture()
                try:
                    self._results = call(self._inputs)
                finally:
                    self._graph = stream.end_capture()

    @contextmanager
    def _through(self) -> Iterator[None]:
        blas.HERE.library = self._library
        try:
            yield
        finally:
            del blas.HERE.library

    def replay(self, inputs: Any) -> Any:
        """The call's results for these inputs, in the order of the current stream. An input that comes back as it was
        is the caller's own."""
        own = {}
        for to, given in zip(leaves(self._inputs), leaves(inputs), strict=True):
            own[id(to)] = given
            if to.size:
                cupy.copyto(to, given)
        self._graph.launch()
        return mapped(lambda x: own[id(x)] if id(x) in own else x.copy(), self._results)


class Recorder:
    """Twins that record: `encoder.encode`, `decoder.start` and `decoder.decode` of several positions."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Any, OrderedDict[Any, Recording | str]] = WeakKeyDictionary()
        self._lock = threading.Lock()  # a recording has one place for its inputs

    def twins(self) -> dict[str, Callable[..., Any]]:
        return {"encode": self.encode, "start": self.start, "decode": self.decode}

    def encode(
        self,
        definition: Definition,
        nx: Any,
        w: Any,
        config: Any,
        embedded: Array,
        positions: Array,
        valid: Array | None = None,
        trace: Trace = OFF,
        given: Mapping[str, Any] = NONE,
    ) -> Any:
        return self._call(definition, (nx, w, config), (embedded, positions, valid, trace, given))

    def start(
        self,
        definition: Definition,
        nx: Any,
        w: Any,
        config: Any,
        encoded: Array,
        valid: Array | None = None,
        trace: Trace = OFF,
    ) -> Any:
        return self._call(definition, (nx, w, config), (encoded, valid, trace))

    def decode(
        self,
        definition: Definition,
        nx: Any,
        w: Any,
        config: Any,
        embedded: Array,
        positions: Array,
        cache: Any,
        valid: Array | None = None,
        trace: Trace = OFF,
        given: Mapping[str, Any] = NONE,
        given_cross: Any = None,
    ) -> Any:
        inputs = (embedded, positions, cache, valid, trace, given, given_cross)
        if embedded.shape[1] == 1:  # for which there is a kernel
            return definition(nx, w, config, *inputs)
        return self._call(definition, (nx, w, config), inputs)

    def _call(self, definition: Definition, model: tuple[Any, Any, Any], inputs: tuple[Any, ...]) -> Any:
        nx, w, _ = model
        batch, length = inputs[0].shape[:2]
        if not 0 < batch * length <= LONGEST or not isinstance(w.layers, tuple) or not plain(inputs) or limited(nx):
            return definition(*model, *inputs)
        with self._lock:
            found = self._recording(definition, model, inputs)
            if isinstance(found, Recording):
                return found.replay(inputs)
        return definition(*model, *inputs)

    def _recording(self, definition: Definition, model: tuple[Any, Any, Any], inputs: Any) -> Recording | str:
        """That of these inputs' form, made now if it was seen once."""
        nx, w, config = model
        key = definition, nx.dtype, nx.profile, tuple(nx.backend.twins.items()), config, form(inputs)
        kept = self._kept.setdefault(w, OrderedDict())
        if key not in kept:
            kept[key] = SEEN
        elif kept[key] is SEEN:
            kept[key] = recorded(lambda given: definition(*model, *given), inputs)
        kept.move_to_end(key)
        while len(kept) > FORMS or sum(isinstance(one, Recording) for one in kept.values()) > MOST:
            kept.popitem(last=False)
        return kept[key]


SEEN, REFUSED = "seen", "refused"  # once, and not to be recorded


def failures() -> tuple[type[Exception], ...]:
    """What a recording that is not to be had ends with."""
    cuda = cupy.cuda  # its errors are RuntimeErrors, most of them; a library that is not found is an OSError
    return RuntimeError, cuda.memory.OutOfMemoryError, cuda.driver.CUDADriverError, AttributeError, OSError


def limited(nx: Any) -> bool:
    """Whether the backend may hold so much memory and no more."""
    return bool(nx.backend.pool.get_limit())


def recorded(call: Callable[[Any], Any], inputs: Any) -> Recording | str:
    """The call as a graph; REFUSED where the card waits for the host in it, or has no room for it."""
    try:
        return Recording(call, inputs)
    except failures():
        cupy.cuda.runtime.deviceSynchronize()
        return REFUSED


def children(value: Any) -> list[Any]:
    """What a tuple, a list or a dataclass is made of."""
    if isinstance(value, (tuple, list)):
        return list(value)
    return [getattr(value, item.name) for item in fields(value)] if is_dataclass(value) else []


def leaves(value: Any) -> Iterator[Array]:
    """The arrays in a value, in their order."""
    if isinstance(value, cupy.ndarray):
        yield value
    for child in children(value):
        yield from leaves(child)


def mapped(change: Callable[[Array], Array], value: Any) -> Any:
    """The value with other arrays."""
    if isinstance(value, cupy.ndarray):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(change, child) for child in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{item.name: mapped(change, getattr(value, item.name)) for item in fields(value)})


def form(value: Any) -> Any:
    """What a recording has fixed of a value: structure, shapes, types, and whatever is no array."""
    if isinstance(value, cupy.ndarray):
        return value.shape, value.dtype
    found = children(value)
    return (type(value), *map(form, found)) if found else value if isinstance(value, (int, float, str)) else type(value)


def plain(value: Any) -> bool:
    """Whether there is nothing in it but arrays, numbers and what holds them: no trace that listens, no masks of the
    caller's."""
    if isinstance(value, cupy.ndarray | int | float | str) or value is None:
        return True
    if isinstance(value, Mapping | Trace):
        return not (value.active if isinstance(value, Trace) else value)
    known = isinstance(value, tuple | list) or is_dataclass(value)
    return known and all(plain(child) for child in children(value))
