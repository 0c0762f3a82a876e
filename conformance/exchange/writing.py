"""Writes safetensors tensor by tensor, each file whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from t5g2ref.checkpoint.header import PYTORCH, encode_header
from t5g2ref.files import replacing

Array = np.ndarray[Any, Any]
Put = Callable[[str, Array], None]


def tensors(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] = PYTORCH) -> None:
    """Write one safetensors file of arrays that are all in memory."""
    with streaming(path, {name: (array.dtype, array.shape) for name, array in arrays.items()}, metadata) as put:
        for name, array in arrays.items():
            put(name, array)


@contextmanager
def streaming(
    path: Path, declared: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str] = PYTORCH
) -> Iterator[Put]:
    """Write a safetensors file whose tensors come one by one, in any order.

    The block gets a function `put(name, array)`. The header is written first, then each tensor in its place.

    Args:
        path: the file; its folder is made if need be.
        declared: name → type and shape of every tensor that will come.
        metadata: words of the header's own.
    """
    header, left = encode_header(declared, metadata)

    def put(name: str, array: Array) -> None:
        entry = left.pop(name)
        if (array.dtype, array.shape) != (entry.dtype, entry.shape):
            raise RuntimeError(f"{name}: declared as {entry.dtype} {entry.shape}, given {array.dtype} {array.shape}")
        handle.seek(entry.begin)
        handle.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as handle:
        handle.write(header)
        yield put
        if left:
            raise RuntimeError(f"{path.name}: {len(left)} tensors never came, first {next(iter(left))}")
