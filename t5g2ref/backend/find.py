"""A backend by its name. The one for CUDA is imported when it is asked for, and never before."""

from __future__ import annotations

import importlib

from t5g2ref.backend.interface import NUMPY, Backend, BackendError


def find(name: str) -> Backend:
    """The backend of a name; BackendError says what is amiss.

    "numpy"; "cupy", or "cupy:1" for the second device; "cupy-fast", or "cupy-fast:1", the same with kernels whose order
    and places of rounding are a fast implementation's.
    """
    library, _, index = name.partition(":")
    if library == "numpy" and not index:
        return NUMPY
    if library not in ("cupy", "cupy-fast") or not (index or "0").isdecimal():
        there = "numpy, cupy, cupy-fast, and cupy:1 or cupy-fast:1 for the second device"
        raise BackendError(f"no backend is called {name!r}; there are: {there}")
    cuda = importlib.import_module("t5g2ref.backend.cuda")
    found: Backend = (cuda.fast_backend if library == "cupy-fast" else cuda.backend)(int(index or 0))
    return found
