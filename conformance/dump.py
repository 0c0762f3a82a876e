"""A peer's activations: one dict of arrays a call, in memory while small, in files of a temporary folder beyond.

One 896 × 896 image through 27 layers is 8 GB of taps; they are written once, read once and deleted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

MEMORY_BYTES = 1 << 30
LARGE_BYTES = 1 << 22


class Dump:
    """Arrays by (call, tap name). Use as a context manager: leaving it deletes the temporary files.

    Args:
        memory_bytes: large arrays go to files once this much is held.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._held: list[dict[str, np.ndarray[Any, Any] | Path]] = []
        self._left = memory_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> Dump:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def calls(self) -> int:
        return len(self._held)

    def new_call(self) -> None:
        self._held.append({})

    def put(self, name: str, value: np.ndarray[Any, Any]) -> None:
        """Store `value` under `name` in the newest call; the array must not be changed afterwards."""
        if name in self._held[-1]:
            raise ValueError(f"tap {name} was given twice in call {self.calls - 1}")
        self._held[-1][name] = self._kept(value)

    def get(self, call: int, name: str) -> np.ndarray[Any, Any] | None:
        """The array, or None when the peer did not show it."""
        value = self._held[call].get(name) if call < self.calls else None
        return np.load(value, mmap_mode="r") if isinstance(value, Path) else value

    def names(self, call: int) -> list[str]:
        return list(self._held[call])

    def _kept(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | Path:
        if value.nbytes < LARGE_BYTES or value.nbytes <= self._left:
            self._left -= value.nbytes
            return value
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="conformance-")
        path = Path(self._folder.name) / f"{self._files}.npy"
        self._files += 1
        np.save(path, value)
        return path
