"""Copies of what a forward shows: in memory while there is room, beyond it in files, which are read when asked for."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conformance.activations import DEVICE_SHARE, LARGE_BYTES, MEMORY_BYTES


@dataclass(frozen=True)
class _Written:
    path: Path
    dtype: torch.dtype
    shape: torch.Size

    def read(self) -> torch.Tensor:
        """The tensor over the file's pages: they are in memory as long as it is."""
        return torch.from_file(str(self.path), shared=False, size=self.shape.numel(), dtype=self.dtype).reshape(
            self.shape
        )


class Spill:
    """Keeps copies of tensors.

    Args:
        cuda: the device whose free memory takes its share of them; None for a model on the CPU.
        memory_bytes: large ones of the host go to files once it holds so much.
    """

    def __init__(self, cuda: torch.device | None, memory_bytes: int = MEMORY_BYTES) -> None:
        self._device_left = 0 if cuda is None else torch.cuda.mem_get_info(cuda)[0] // DEVICE_SHARE
        self._most = self._left = memory_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def copied(self, value: Any) -> Any:
        """A copy made at once, so that a later change in place cannot reach it; what is no tensor as it is."""
        if not torch.is_tensor(value):
            return value
        value = value.detach()
        if value.is_cuda:
            self._device_left -= value.nbytes
            if self._device_left >= 0:
                return value.clone()
        if value.nbytes < LARGE_BYTES or value.nbytes <= self._left:
            self._left -= value.nbytes
            return value.cpu() if value.is_cuda else value.clone()
        return self._written(value.cpu().contiguous())

    def let_go(self, value: Any) -> None:
        """Delete the file of what was kept, if it is in one: a disk may not have room for it twice."""
        if isinstance(value, _Written):
            value.path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all files."""
        if self._folder is not None:
            self._folder.cleanup()
        self._folder, self._files, self._left = None, 0, self._most

    def _written(self, value: torch.Tensor) -> _Written:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="conformance-")
        path = Path(self._folder.name) / f"{self._files}.bin"
        self._files += 1
        value.view(torch.uint8).numpy().tofile(path)
        return _Written(path, value.dtype, value.shape)


def read(value: Any) -> Any:
    """What was kept."""
    return value.read() if isinstance(value, _Written) else value
