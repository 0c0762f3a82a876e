"""Checkpoints: opened as untrusted input, checked whole against the configuration, then read.

A checkpoint is a folder with `config.json` and the weights that `opened` describes. No tensor is kept before all
names, shapes and ties are known to be right. Every error names the tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from t5g2ref.backend import NUMPY, Backend
from t5g2ref.checkpoint.fit import check, fitted, head_of
from t5g2ref.checkpoint.opened import Checkpoint
from t5g2ref.checkpoint.tensor import WeightsError, element
from t5g2ref.checkpoint.write import save
from t5g2ref.config import Config
from t5g2ref.on_demand import OnDemand
from t5g2ref.params import tree
from t5g2ref.weights import Weights

__all__ = ["Checkpoint", "WeightsError", "check", "fitted", "head_of", "load", "save"]

Progress = Callable[[str, int, int], None]


def load(
    folder: str | Path,
    dtype: str = "float32",
    *,
    config: Config | None = None,
    progress: Progress | None = None,
    backend: Backend = NUMPY,
    stream: bool = False,
) -> tuple[Config, Weights]:
    """Return a checkpoint's configuration and its parameters as a tree of arrays of the backend in `dtype`.

    On NumPy they are read-only. On a device float64 is kept as float32 for every tensor that is stored as float32 or
    narrower: the same values in half the memory, widened by `Numerics.weight` where they are used. Nothing but a few
    MiB of a tensor is in host memory on its way to a device.

    `config` replaces the folder's config.json. `progress(name, done, total)` is called after each tensor.
    With `stream` a layer's tensors are read whenever the layer is entered, and let go after it: two layers are in
    memory at a time, beside what is in none. On NumPy they are kept as stored where `dtype` has all their values.

    The score head is read where it is there. Tied names are checked and left out: read their source.
    Raises ConfigError; WeightsError, for names, shapes and ties before any tensor is kept; and BackendError before
    any is read where the device has no room for all.
    """
    element(dtype)
    config = Config.load(folder) if config is None else config
    checkpoint = Checkpoint.open(folder)
    config = fitted(checkpoint, config)
    names = check(checkpoint, config)
    kept = {name: backend.kept(checkpoint.dtype(name), dtype, narrow=stream) for name in names}
    if stream:
        return config, tree(OnDemand(names, lambda name: checkpoint.read(name, kept[name], backend)))
    size = sum(prod(shape) * element(kept[name]).itemsize for name, shape in names.items())
    backend.require(size, f"the weights of {checkpoint.folder}")
    flat: dict[str, Any] = {}
    for name in names:
        flat[name] = checkpoint.read(name, kept[name], backend)
        if progress is not None:
            progress(name, len(flat), len(names))
    return config, tree(flat)
