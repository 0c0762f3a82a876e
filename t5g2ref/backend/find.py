"""A backend by its name. The one for CUDA is imported when it is asked for, and never before."""

from __future__ import annotations

import importlib

from t5g2ref.backend.interface import NUMPY, Backend, BackendError


def find(name: str) -> Backend:
    """The backend of a name: "numpy", "cupy", or "cupy:1" for the second device. BackendError says what is amiss."""
    library, _, index = name.partition(":")
    if library == "numpy" and not index:
        return NUMPY
    if library != "cupy" or not (index or "0").isdecimal():
        raise BackendError(f"no backend is called {name!r}; there are: numpy, cupy, and cupy:1 for the second device")
    found: Backend = importlib.import_module("t5g2ref.backend.cuda").backend(int(index or 0))
    return found
