"""Memory of the host that several processes see: what one of them writes there, the others read without a copy.

It has no name in any folder. The system frees it when the last process that has it ends, however it ends.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class HostKey:
    """What a process opens the memory by. It reaches those that are being started, by `multiprocessing`.

    Args:
        file: the open file's number, in the process that has the key.
    """

    file: int
    size: int

    def __reduce__(self) -> Any:
        from multiprocessing.reduction import DupFd  # which not every system has

        return _received, (DupFd(self.file), self.size)


def _received(file: Any, size: int) -> HostKey:
    return HostKey(file.detach(), size)


class HostArena:
    """See `interface.Arena`. Pages that nobody writes take no memory. OSError where the system has no such memory."""

    def __init__(self, size: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        self._file, self._size = os.fdopen(os.memfd_create("t5g2ref"), "r+b", buffering=0), max(1, size)
        self._file.truncate(self._size)
        self.bytes: Any = np.frombuffer(mmap.mmap(self._file.fileno(), self._size), np.uint8)

    def key(self) -> HostKey:
        return HostKey(self._file.fileno(), self._size)

    def close(self) -> None:
        self.bytes = None
        self._file.close()


def opened(key: HostKey) -> np.ndarray[Any, Any]:
    """The bytes, read-only. Who writes there all the same, past NumPy, gets pages of its own, and nobody else sees it.
    OSError where they cannot be had."""
    found = np.frombuffer(mmap.mmap(key.file, key.size, access=mmap.ACCESS_COPY), np.uint8)
    found.flags.writeable = False
    return found
