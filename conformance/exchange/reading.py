"""Reads safetensors from a stranger: the path stays in its folder, the header is checked whole, every type is known.

A dump may hold what weights may not: integers, bool and NaN. The judge finds the NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from t5g2ref.checkpoint.header import ANY, Entry, HeaderError, read_header
from t5g2ref.checkpoint.tensor import Stored, WeightsError, stamp
from t5g2ref.config.fields import short
from t5g2ref.files import opened

Array = np.ndarray[Any, Any]
_MAX_NAME = 1024  # of a file
MAX_HEADER = 1 << 22  # bytes: some ten thousand tensors; the taps of a call are far fewer


class DumpError(ValueError):
    """The dump cannot be judged. The message says which file or entry, what was expected and found."""


@dataclass(frozen=True)
class Tensors:
    """A checked file. `stamp` tells whether it is still the one whose header was read."""

    path: Path
    name: str
    entries: Mapping[str, Entry]
    stamp: tuple[int, ...]

    @staticmethod
    def open(root: Path, name: object) -> Tensors:
        """The file `name` inside the folder `root`; no tensor is read. Raises DumpError for anything wrong."""
        path, shown = confined(root, name), short(name)
        try:
            with opened(path) as handle:
                seen = stamp(handle)
                entries = read_header(handle, seen[0], ANY, MAX_HEADER)
        except HeaderError as error:
            raise DumpError(f"{shown}: {error}; {error.remedy or 'write it again'}") from error
        except OSError as error:
            raise DumpError(f"{shown}: cannot be read: {error.strerror}") from error
        return Tensors(path, str(name), entries, seen)

    def read(self, name: str) -> Array:
        """The tensor in its own type, NaN included."""
        entry = self.entries[name]
        size = math.prod(entry.shape)
        raw = np.dtype(np.uint8) if entry.dtype == np.bool_ else entry.dtype  # so that a bool of 2 is seen
        out = np.empty(size, raw)  # no larger than the file, whose header has been checked
        try:
            with opened(self.path) as handle:
                at = 0
                for chunk in Stored(self.path, name, raw, entry.shape, entry.begin, handle, self.stamp).chunks():
                    out[at : at + chunk.size] = chunk
                    at += chunk.size
        except (OSError, WeightsError) as error:
            raise DumpError(f"{short(self.name)}: {short(name)}: {error}") from error
        if entry.dtype == np.bool_:
            out = truths(out, f"{short(self.name)}: {short(name)}")
        return out.reshape(entry.shape)


def truths(array: Array, what: str) -> Array:
    """An array of 0 and 1 as bool. Raises DumpError for any other number."""
    if array.size and int(array.max()) > 1:
        raise DumpError(f"{what}: expected 0 and 1 for a bool, found {int(array.max())}")
    return array.astype(np.bool_)


def confined(root: Path, name: object) -> Path:
    """The file root / name, inside root even after links. Raises DumpError for any other."""
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise DumpError(f"a file is called {short(name)}, expected a path inside the folder")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or set(name) & set("\\:"):
        raise DumpError(f"a file is called {short(name)}, expected a path inside the folder, without .. in it")
    try:
        target = (root / path).resolve()
        inside, there = target.is_relative_to(root.resolve()), target.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, a ring of links
        raise DumpError(f"{short(name)}: cannot be read: {error}") from error
    if not inside:
        raise DumpError(f"{short(name)}: a link out of the folder; copy the file into it")
    if not there:
        raise DumpError(f"{short(name)}: no such file in the folder")
    return target
