"""Peers: implementations under judgement. This package imports none of them; each sits in a module of its own."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from conformance.case import Case
from conformance.dump import Dump
from conformance.foreign import line
from t5g2ref.backend import NUMPY, Backend
from t5g2ref.config import Config
from t5g2ref.numerics import HALF, DType, Numerics


class PeerUnavailable(RuntimeError):
    """The peer cannot be run here; the message says what to install or change."""


class Skip(Exception):
    """Raised by a peer's `run` for a case that it does not do: shown, counted, and never a pass.

    Args:
        reason: why.
        link: where that is said (an issue, a page); "" for nowhere.
    """

    def __init__(self, reason: str, link: str = "") -> None:
        self.reason, self.link = line(reason), line(link)
        super().__init__(f"{self.reason} ({self.link})" if self.link else self.reason)


@dataclass(frozen=True)
class Target:
    """The checkpoint under test.

    Args:
        name: as shown in reports.
        config: its geometry.
        weights: canonical name → float32 array of the backend.
        folder: the checkpoint on disk, for a peer with a loader of its own; None for synthetic weights.
        backend: where the judge computes.
    """

    name: str
    config: Config
    weights: Mapping[str, Any]
    folder: Path | None = None
    backend: Backend = NUMPY
    _rounded: dict[str, Mapping[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rounded(self, dtype: DType) -> Mapping[str, Any]:
        """The weights that a peer in `dtype` runs with, made once: rounded to the grid of a half type, as native
        arrays of it where the backend has them. On NumPy those that are on the grid already are the very same arrays.
        """
        if dtype not in HALF:
            return self.weights
        if dtype not in self._rounded:
            nx = Numerics(dtype, backend=self.backend)
            with nx.scope():
                self._rounded[dtype] = {name: _on_grid(nx, value) for name, value in self.weights.items()}
        return self._rounded[dtype]


def _on_grid(nx: Numerics, value: Any) -> Any:
    rounded = nx.array(value)
    return value if nx.emulated and bool((rounded == value).all()) else rounded


class Peer(Protocol):
    """What the judge needs of an implementation.

    Two more it looks for: `taps`, a tuple of patterns of the tap names that the peer shows (without it: all), and
    `weights()`, which yields canonical name and array of every tensor as the peer holds it after loading.
    """

    name: str
    dtype: str

    def versions(self) -> dict[str, str]:
        """Names and versions of what was run, for the report."""

    def open(self, target: Target) -> None:
        """Load the checkpoint, with the peer's own loader where it has one."""

    def run(self, case: Case, dump: Dump) -> None:
        """Make the case's calls in order, putting every tap into `dump`."""

    def close(self) -> None:
        """Free the model."""


_TYPES = "float32|bfloat16|float16"
FORMS = {
    f"transformers:eager|sdpa[:{_TYPES}[:cpu|cuda|cuda:1]]": "float32 and the judge's device where nothing is said",
    f"t5g2ref:numpy|cupy[:1]:{_TYPES}": "the reference itself, on an array library",
    "process:[DTYPE:]COMMAND": "a program that speaks JSON lines (see `explain ports`)",
    "dir:FOLDER": "what a program wrote, as `check` reads it",
    "ENTRY[:ARGUMENT]": "a Python package's entry point in the group conformance.peers",
}
"""How a peer may be named, and what that means."""

_NAMES = {  # module: its names, whose groups are the arguments of its `create`
    "transformers": re.compile(rf"transformers:(eager|sdpa)(?::({_TYPES})(?::(cpu|cuda|cuda:\d+))?)?"),
    "t5g2ref": re.compile(rf"t5g2ref:(numpy|cupy|cupy:\d+):({_TYPES})"),
}


BUILT_IN = ("transformers:", "t5g2ref:")
"""How names begin that mean the same peer however they are spelt."""


def names(dtype: str = "float32") -> list[str]:
    """The peers that are judged where none is named, in this type."""
    return [f"transformers:{attention}:{dtype}" for attention in ("eager", "sdpa")]


def create(name: str, backend: Backend = NUMPY) -> Peer:
    """The peer of that name, for a judge on `backend`. Raises PeerUnavailable when it is unknown, its packages are not
    installed, or its device is not there."""
    for module, pattern in _NAMES.items():
        if match := pattern.fullmatch(name):
            return _created(name, module, *match.groups(), backend)
    if name.startswith("process:"):
        return _created(name, "process", name)
    if name.startswith("dir:"):
        from conformance.dumps.peer import create as read

        return read(Path(name.removeprefix("dir:")))
    from conformance.peers import plugins

    found = plugins.find(name, backend)
    if found is None:
        known = ", ".join([*FORMS, *plugins.names()])
        raise PeerUnavailable(f"no peer is called {name!r}; there are: {known}")
    return found


def _created(name: str, module: str, *arguments: Any) -> Peer:
    if module == "transformers":
        from conformance.peers.releases import refuse_unsupported

        refuse_unsupported()
    try:
        peer: Peer = importlib.import_module(f"conformance.peers.{module}").create(*arguments)
    except ModuleNotFoundError as error:
        raise PeerUnavailable(
            f'peer {name} needs {error.name}, which is not installed: pip install "t5g2ref[conformance]"'
        ) from error
    except ImportError as error:  # it is installed, but too old or broken
        raise PeerUnavailable(
            f'peer {name} could not be imported ({error}): pip install --upgrade "t5g2ref[conformance]"'
        ) from error
    return peer
