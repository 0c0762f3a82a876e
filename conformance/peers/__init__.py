"""Peers: implementations under judgement. This package imports none of them; each sits in a module of its own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from conformance.cases import Case
from conformance.dump import Dump
from t5g2ref.config import Config


class PeerUnavailable(RuntimeError):
    """The peer cannot be run here; the message says what to install or change."""


@dataclass(frozen=True)
class Target:
    """The checkpoint under test.

    Args:
        name: as shown in reports.
        config: its geometry.
        weights: canonical name → array, in the precision that the peer runs in.
        folder: the checkpoint on disk, for a peer with a loader of its own; None for synthetic weights.
    """

    name: str
    config: Config
    weights: Mapping[str, Any]
    folder: Path | None = None


class Peer(Protocol):
    """What the judge needs of an implementation."""

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


_BUILT_IN = {
    "transformers:eager": ("conformance.peers.transformers", "eager"),
    "transformers:sdpa": ("conformance.peers.transformers", "sdpa"),
}


def names() -> list[str]:
    return list(_BUILT_IN)


def create(name: str) -> Peer:
    """The peer of that name. Raises PeerUnavailable when it is unknown or its packages are not installed."""
    if name not in _BUILT_IN:
        raise PeerUnavailable(f"no peer is called {name!r}; there are: {', '.join(names())}")
    module, argument = _BUILT_IN[name]
    try:
        peer: Peer = importlib.import_module(module).create(argument)
    except ModuleNotFoundError as error:
        raise PeerUnavailable(
            f'peer {name} needs {error.name}, which is not installed: pip install "t5g2ref[conformance]"'
        ) from error
    except ImportError as error:  # it is installed, but too old or broken
        raise PeerUnavailable(
            f'peer {name} could not be imported ({error}): pip install --upgrade "t5g2ref[conformance]"'
        ) from error
    return peer
