"""Whether CuPy and a device can be used here, and if not, why and what to do, in words for who has not used either."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from t5g2ref.backend.interface import BackendError

CUPY = 14  # the first major version with native bfloat16
NUMPY = "2.1.2"  # with an older one CuPy leaves bfloat16 out
INSTALL = (
    'pip install "t5g2ref[cuda13]" where `nvidia-smi` prints CUDA Version 13 or later, "t5g2ref[cuda12]" where it '
    "prints 12"
)
LIBRARIES = (
    'pip install "cupy-cuda13x[ctk]", or "cupy-cuda12x[ctk]" where that is the CuPy that `pip list` shows; or install '
    "the CUDA toolkit of that version"
)
NO_ROOM = ("ALLOC_FAILED", "OUT_OF_MEMORY", "MemoryAllocation")  # in cuBLAS's, the driver's and the runtime's errors


def usable(index: int, memory_limit: int | None, stream: Any) -> None:
    """Return if a backend can be made of these arguments of `backend`; BackendError says why not."""
    cupy = library()
    found = count(cupy)
    if not 0 <= index < found:
        there = "device 0 alone is there" if found == 1 else f"devices 0 to {found - 1} are there"
        raise BackendError(f"there is no CUDA device {index}: {there}{_visible()}")
    if memory_limit is not None and memory_limit <= 0:
        raise BackendError(f"memory_limit is {memory_limit}, expected a positive number of bytes, or None for no limit")
    if stream is not None and stream.device_id not in (-1, index):  # -1: the default stream of every device
        raise BackendError(f"the stream belongs to device {stream.device_id}, expected one of device {index}")
    try:
        with cupy.cuda.Device(index):
            cupy.cuda.runtime.memGetInfo()  # makes the context, which a card in exclusive use or at fault refuses
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(f"CUDA device {index} does not start: {error}; see who uses it with nvidia-smi") from error
    works(cupy, index)


def works(cupy: Any, index: int) -> None:
    """Return if CUDA's libraries are there, a kernel compiles and runs on the device, and cuBLAS starts. CuPy looks for
    all of it only at its first use; whether its compiler knows a card shows only then too."""
    try:
        blas, _ = cupy.cuda.cublas, cupy.cuda.nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        why = f"CuPy does not find CUDA's libraries, cuBLAS and the compiler NVRTC: {_line(error)}"
        raise BackendError(f"{why}. They do not come with CuPy alone: {LIBRARIES}") from error
    try:
        with cupy.cuda.Device(index):
            cupy.asnumpy(cupy.ones(1, dtype=np.float16))  # a kernel, with CUDA's headers
            blas.destroy(blas.create())
    except Exception as error:
        if isinstance(error, MemoryError) or no_room(error):
            why = f"CUDA device {index} has no memory left in which CUDA's libraries could start: {_line(error)}"
            raise BackendError(f"{why}; close what else holds it (nvidia-smi lists it)") from error
        raise BackendError(_unfit(cupy, index, error)) from error


def no_room(error: Exception) -> bool:
    """Whether an error of CUDA's libraries says that they found no memory for themselves."""
    return any(word in str(error) for word in NO_ROOM)


def library() -> Any:
    """CuPy, imported; BackendError if it is missing, broken or too old."""
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            raise BackendError(f"CuPy is not installed: {INSTALL}") from error
        raise _broken(error) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(error) from error
    if int(cupy.__version__.split(".")[0]) < CUPY:
        raise BackendError(f"CuPy {cupy.__version__} is too old, expected {CUPY} or later: {INSTALL}")
    if np.lib.NumpyVersion(np.__version__) < NUMPY:
        found = f"NumPy {np.__version__}, with which CuPy has no bfloat16"
        raise BackendError(f'found {found}; expected {NUMPY} or later: pip install "numpy>={NUMPY}"')
    return cupy


def _broken(error: Exception) -> BackendError:
    again = f"uninstall every cupy package that `pip list` shows, then {INSTALL}"
    return BackendError(f"CuPy is installed but does not import: {error}; {again}")


def count(cupy: Any) -> int:
    """How many devices there are, at least 1; BackendError says why there is none."""
    runtime = cupy.cuda.runtime
    try:
        found = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        if "cudaErrorInsufficientDriver" in str(error):
            raise BackendError(_driver(runtime)) from error
        if "cudaErrorNoDevice" not in str(error):
            raise BackendError(f"CUDA does not start: {error}; see whether nvidia-smi lists a card") from error
        found = 0
    if not found:
        raise BackendError(f"there is no CUDA device: see whether nvidia-smi lists a card{_visible()}")
    return found


def _driver(runtime: Any) -> str:
    driver, built = version(runtime.driverGetVersion), version(runtime.runtimeGetVersion)
    if driver is None:
        return (
            "there is no NVIDIA driver: install the one of your card; in a container, start it with its GPUs (docker "
            "run --gpus all). Without a card, use the backend numpy"
        )
    major = driver.split(".")[0]
    fits = f', or pip install "t5g2ref[cuda{major}]" in place of the other' if major in ("12", "13") else ""
    newer = f"CuPy was built for {built or 'a later one'}"
    return f"the NVIDIA driver is for CUDA {driver}, {newer}: update the driver{fits}"


def version(get: Callable[[], int]) -> str | None:
    """One of the runtime's two versions, "13.2" for 13020; None for 0 (nothing is there) or an error."""
    try:
        number = int(get())
    except Exception:  # only ever part of a message
        return None
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _unfit(cupy: Any, index: int, error: Exception) -> str:
    try:
        digits = str(cupy.cuda.Device(index).compute_capability)  # "75", "120"
        capability = f"{digits[:-1]}.{digits[-1]}"
    except Exception:  # only ever part of a message
        capability = "unknown"
    built = version(cupy.cuda.runtime.runtimeGetVersion)
    return (
        f"CuPy {cupy.__version__} for CUDA {built} cannot compile or run for compute capability {capability}, which "
        f"CUDA device {index} has: {_line(error)}. CUDA 13 knows 7.5 and later; for an older card uninstall CuPy, then "
        'pip install "t5g2ref[cuda12]". Otherwise put CuPy and the CUDA libraries in order: uninstall every cupy and '
        f"nvidia package that `pip list` shows, then {INSTALL}"
    )


def _line(error: Exception) -> str:
    """The error's first line of text: a compiler's message may be hundreds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300].rstrip('.')}" if lines else type(error).__name__


def _visible() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return ""
    return f" (CUDA_VISIBLE_DEVICES is {chosen!r} and hides every card that it does not name)"
