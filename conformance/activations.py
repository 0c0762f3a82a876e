"""A peer's activations: one dict of arrays a call.

They stay on the judge's device or in memory while there is room, and go to files of a temporary folder beyond.
One 896 × 896 image through 27 layers is 8 GB of taps; they are written once, read once and deleted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.arrays import free_bytes, has_device, on_device, same_bits, to_backend, to_host, words
from t5g2ref.backend import NUMPY, Backend

Array = Any
Judged = Callable[[int, str, Array], Array]
MEMORY_BYTES = 1 << 30
LARGE_BYTES = 1 << 22
DEVICE_SHARE = 2  # one part in so many of a device's free memory: the rest is the models' and the judge's


@dataclass(frozen=True)
class _Spilled:
    """An array in a file, where bfloat16 is kept as bare words."""

    path: Path
    dtype: np.dtype[Any]


class Dump:
    """Arrays by (call, tap name). Use as a context manager: leaving it deletes the temporary files.

    Args:
        backend: the judge's; `get` gives its arrays.
        memory_bytes: large arrays go to files once this much is held on the host.
        device_bytes: device arrays go to the host once this much is held on the judge's device; None for a share of
            what is free there. A judge on the host takes all of them there at once.
        first: what an earlier run of the same case showed. Where the bits repeat, its array is held, which takes no
            memory.
        judged: of a call's tap, the part that is judged; None for all of each.
        unseen: nothing of it is looked at: a peer may leave out what only serves to show it.
    """

    def __init__(
        self,
        backend: Backend = NUMPY,
        memory_bytes: int = MEMORY_BYTES,
        device_bytes: int | None = None,
        first: Dump | None = None,
        unseen: bool = False,
        judged: Judged | None = None,
    ) -> None:
        self.backend = backend
        self._judged = judged
        self._first = first
        self.unseen = unseen
        self._held: list[dict[str, Array | _Spilled]] = []
        self._left = memory_bytes
        if device_bytes is None and has_device(backend):
            device_bytes = free_bytes(backend) // DEVICE_SHARE
        self._device_left = device_bytes or 0
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

    def put(self, name: str, value: Array, *, changing: bool = False) -> None:
        """Store `value` under `name` in the newest call.

        Args:
            value: a NumPy array, or a device's: anything with `__cuda_array_interface__`.
            changing: whether its memory may change afterwards. Then what is kept of it in memory is a copy.
        """
        if not self._held:
            raise ValueError(f"tap {name} was given before any call: new_call() comes first")
        if name in self._held[-1]:
            raise ValueError(f"tap {name} was given twice in call {self.calls - 1}")
        if not on_device(value):
            if not isinstance(value, np.ndarray | np.generic):
                raise TypeError(f"tap {name} is a {type(value).__name__}, expected an array of NumPy or of a device")
            if type(value) is not np.ndarray:
                value = np.asarray(value).view(np.ndarray)  # a masked array would hide what it holds
        held = self._repeated(name, value)
        self._held[-1][name] = self._kept(value, changing) if held is None else held

    def get(self, call: int, name: str) -> Array | None:
        """What is judged of a tap, an array of the backend; None when the peer did not show it."""
        value = self.whole(call, name)
        return value if value is None or self._judged is None else self._judged(call, name, value)

    def whole(self, call: int, name: str) -> Array | None:
        """All that was shown of a tap: what our runs go on with."""
        value = self._held[call].get(name) if call < self.calls else None
        if isinstance(value, _Spilled):
            value = np.load(value.path, mmap_mode="r").view(value.dtype)
        return value if value is None or on_device(value) else to_backend(value, self.backend)

    def names(self, call: int) -> list[str]:
        return list(self._held[call])

    def repeats(self, call: int, name: str) -> bool:
        """Whether the bits of this tap are those of the first run."""
        if self._first is None or call >= min(self.calls, self._first.calls):
            return False
        mine = self._held[call].get(name)
        return mine is not None and mine is self._first._held[call].get(name)

    def _repeated(self, name: str, value: Array) -> Array | _Spilled | None:
        """What the first run holds at this tap, if its bits are the same."""
        if self._first is None or (known := self._first.get(self.calls - 1, name)) is None:
            return None
        same = same_bits(known, to_backend(value, self.backend), self.backend)
        return self._first._held[self.calls - 1][name] if same else None

    def _kept(self, value: Array, changing: bool) -> Array | _Spilled:
        if on_device(value):
            if has_device(self.backend) and value.nbytes <= self._device_left:
                self._device_left -= value.nbytes
                with self.backend.scope():
                    mine = to_backend(value, self.backend)
                    return mine.copy() if changing else mine
            value, changing = to_host(value), False
        if value.nbytes < LARGE_BYTES or value.nbytes <= self._left:
            self._left -= value.nbytes
            return value.copy() if changing else value
        return self._written(value)

    def _written(self, value: np.ndarray[Any, Any]) -> _Spilled:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="conformance-")
        path = Path(self._folder.name) / f"{self._files}.npy"
        self._files += 1
        np.save(path, words(value))
        return _Spilled(path, value.dtype)
