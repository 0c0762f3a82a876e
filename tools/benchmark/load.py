"""Loading a checkpoint to the device, on both sides: from a folder whose files are not in the page cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import t5g2ref
from benchmark.theirs import embedding_rows, opened
from benchmark.timing import Work
from conformance.target import Target
from t5g2ref.backend import Backend
from t5g2ref.checkpoint.folder import save
from t5g2ref.dtypes import DType

ROWS = 64  # of the embedding, compared


@contextmanager
def folder(target: Target, backend: Backend) -> Iterator[Path]:
    """The target's own folder; for synthetic weights a temporary one, written in bfloat16."""
    if target.folder is not None:
        yield target.folder
        return
    with TemporaryDirectory(prefix="t5g2ref-bench-") as name:
        arrays = ((tensor, backend.host(value)) for tensor, value in target.weights.items())
        save(name, target.config, arrays, dtype="bfloat16")
        yield Path(name)


def forget(path: Path) -> None:
    """Write out the folder's files and ask the system to drop them from its cache (it may decline)."""
    for file in path.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def ours(path: Path, dtype: DType, backend: Backend, fresh: Callable[[], None]) -> Work:
    """`fresh` is called before each repeat."""

    def sample(model: t5g2ref.T5Gemma2) -> np.ndarray[Any, Any]:
        with model.nx.scope():
            rows = model.weights.encoder.text_model.embed_tokens.weight[:ROWS]
        return backend.host(rows).astype(np.float64)

    return Work(lambda _: t5g2ref.load(path, dtype, backend=backend), sample, fresh)


def theirs(path: Path, target: Target, name: str, fresh: Callable[[], None]) -> Work:
    """from_pretrained to the device, by the conformance suite's peer, which computes nothing here."""
    on_disk = Target(target.name, target.config, {}, path)
    return Work(lambda _: opened(on_disk, name), lambda loaded: embedding_rows(loaded[1], ROWS), fresh)
