"""Writes files whole or not at all: safetensors tensor by tensor, and text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from t5g2ref.checkpoint.header import encode_header

Array = np.ndarray[Any, Any]
Put = Callable[[str, Array], None]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the name `path` at the end of the block; after an error nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def text(path: Path, content: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def tensors(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write one safetensors file of arrays that are all in memory."""
    with streaming(path, {name: (array.dtype, array.shape) for name, array in arrays.items()}) as put:
        for name, array in arrays.items():
            put(name, array)


@contextmanager
def streaming(path: Path, declared: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> Iterator[Put]:
    """Write a safetensors file whose tensors come one by one, in any order.

    The block gets a function `put(name, array)`. The header is written first, then each tensor in its place.

    Args:
        declared: name → type and shape of every tensor that will come.
    """
    header, left = encode_header(declared)

    def put(name: str, array: Array) -> None:
        entry = left.pop(name)
        if (array.dtype, array.shape) != (entry.dtype, entry.shape):
            raise RuntimeError(f"{name}: declared as {entry.dtype} {entry.shape}, given {array.dtype} {array.shape}")
        handle.seek(entry.begin)
        handle.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    with replacing(path) as temporary, temporary.open("wb") as handle:
        handle.write(header)
        yield put
        if left:
            raise RuntimeError(f"{path.name}: {len(left)} tensors never came, first {next(iter(left))}")
