"""The backend of one CUDA device: where arrays live, in whose order kernels run, and whose memory they take.

Imported by `t5g2ref.cuda.backend` once `checks` has found everything in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import cupy
import numpy as np

from t5g2ref.backend.cuda import blas, fused, sharing
from t5g2ref.backend.cuda.checks import no_room, version
from t5g2ref.backend.cuda.loading import Loader
from t5g2ref.backend.interface import Arena, Array, Backend, BackendError, Source

ERRORS = (cupy.cuda.cublas.CUBLASError, cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)
LIBRARIES = 512 << 20  # bytes beside the arrays that CUDA's libraries take for themselves: cuBLAS, compiled kernels


class CudaBackend(Backend):
    """CuPy on one device; made by `t5g2ref.cuda.backend`, which says what the arguments are.

    Attributes:
        index: of the device.
        stream: everything runs in its order.
        pool: the memory of every array made in `scope`; it keeps what is freed, to use it again.
    """

    xp = cupy
    native_half = True
    block_rows = 1024  # large, for few launches: 512 MiB in float64
    block_scores = 1 << 26
    twins = fused.TWINS

    def __init__(self, index: int = 0, *, memory_limit: int | None = None, stream: Any = None) -> None:
        self.name = f"cupy:{index}" if index else "cupy"
        self.index = index
        self.stream = cupy.cuda.Stream.null if stream is None else stream
        self.pool = cupy.cuda.MemoryPool()
        if memory_limit is not None:
            with cupy.cuda.Device(index):  # a pool has a limit for each device
                self.pool.set_limit(size=memory_limit)
        self._loader = Loader(cupy, partial(Pinned, stream=self.stream))

    @contextmanager
    def scope(self) -> Iterator[CudaBackend]:
        """Inside it, new arrays and kernels belong to this device, stream and pool, in the calling thread alone; what
        was current before comes back. Scopes nest. Out of memory, of an array or of a CUDA library for itself, is a
        BackendError that says what to do."""
        with cupy.cuda.Device(self.index), self.stream, cupy.cuda.using_allocator(self.pool.malloc):
            try:
                yield self
            except cupy.cuda.memory.OutOfMemoryError as error:
                raise self._full(f"an array: needed {gib(getattr(error, '_size', 0))}") from error
            except ERRORS as error:
                if not no_room(error) and "NOT_INITIALIZED" not in str(error):  # how cuBLAS says it when it starts
                    raise
                raise self._full(f"a CUDA library itself: {error}") from error

    def host(self, x: Array) -> np.ndarray[Any, Any]:
        with self.scope():  # so that the copy is made in the order of our stream
            out: np.ndarray[Any, Any] = cupy.asnumpy(x)
        return out

    def load(self, source: Source, dtype: str) -> Array:
        with self.scope():
            return self._loader.load(source, dtype)

    def kept(self, stored: str, dtype: str, *, narrow: bool = False) -> str:
        # Exact down to 2⁻¹²⁶: below it a float32 counts as 0 when CuPy, which compiles with -ftz=true, widens it.
        return "float32" if dtype == "float64" and stored != "float64" else dtype

    def require(self, bytes_needed: int, what: str) -> None:
        """BackendError where the device has no room for so many bytes of `what` and, beside them, for the 512 MiB that
        CUDA's libraries may take for themselves once something is computed; these count for no memory limit."""
        if bytes_needed > self.memory()[0]:
            raise self._full(f"{what}: needed {gib(bytes_needed)}")
        if bytes_needed + LIBRARIES > self._room()[0]:
            raise self._full(f"{what}: needed {gib(bytes_needed)} and {gib(LIBRARIES)} for CUDA's libraries")

    def memory(self) -> tuple[int, int]:
        """Bytes that this backend can still take, what its pool would use again included, and bytes in all: of the
        device, or of the memory limit if that is less."""
        free, total = self._room()
        with cupy.cuda.Device(self.index):
            limit = self.pool.get_limit() or total
            return max(0, min(free, limit - self.pool.used_bytes())), min(total, limit)

    def _room(self) -> tuple[int, int]:
        """The same of the device, whatever the memory limit."""
        with cupy.cuda.Device(self.index):
            free, total = cupy.cuda.runtime.memGetInfo()
            return free + self.pool.free_bytes(), total

    def arena(self, size: int) -> Arena:
        with self.scope():
            self.pool.free_all_blocks()
            return sharing.DeviceArena(size, self.index, self.stream)

    def opened(self, key: Any) -> Array:
        with self.scope():
            return sharing.opened(key, self.index)

    def describe(self) -> dict[str, str]:
        runtime = cupy.cuda.runtime
        return {
            "device": f"{self.name}, {self._model()}",
            "driver": f"CUDA {version(runtime.driverGetVersion)}",
            "runtime": f"CUDA {version(runtime.runtimeGetVersion)}",
            "cupy": cupy.__version__,
            **super().describe(),
        }

    def _model(self) -> str:
        name: bytes = cupy.cuda.runtime.getDeviceProperties(self.index)["name"]
        return name.decode()

    def _full(self, what: str) -> BackendError:
        free, total = self.memory()
        return BackendError(
            f"not enough memory on {self.name} ({self._model()}) for {what}, free {gib(free)} of {gib(total)}. Use a "
            "smaller dtype, fewer rows or tokens at a time, another device (cupy:1), or a higher memory_limit if one "
            "was given; or close what else holds the device's memory (nvidia-smi lists it)"
        )

    def product(self, a: Array, b: Array, dtype: np.dtype[Any]) -> Array:
        return blas.product(a, b, dtype)

    def running(self, a: Array, b: Array) -> Array:
        return fused.running(a, b)

    def join(self, arrays: list[Array], axis: int) -> Array:
        return fused.join(arrays, axis)


class Pinned:
    """A buffer of page-locked host memory (`loading.Buffer`); made inside the backend's scope."""

    def __init__(self, size: int, stream: Any) -> None:
        try:
            self._memory = cupy.cuda.alloc_pinned_memory(size)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            why = f"{gib(size)} of page-locked host memory could not be had: {error}"
            raise BackendError(f"{why}; close what else holds the host's memory, or raise its limit") from error
        self.host = np.frombuffer(self._memory, np.uint8, size)
        self._stream = stream
        self._sent = cupy.cuda.Event(disable_timing=True)

    def send(self, to: Array) -> None:
        to.data.copy_from_host_async(self._memory.ptr, to.nbytes, self._stream)
        self._sent.record(self._stream)

    def wait(self) -> None:
        self._sent.synchronize()


def gib(size: int) -> str:
    """A number of bytes in GiB, to three digits."""
    return f"{size / 2**30:.3g} GiB"
