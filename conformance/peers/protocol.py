"""What the judge asks of an implementation, and how one says that it skips a case."""

from __future__ import annotations

from typing import Protocol

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.peers.guard import line
from conformance.target import Target


class Skip(Exception):
    """Raised by a peer's `run` for a case that it does not do: shown, counted, and never a pass.

    Args:
        reason: why.
        link: where that is said (an issue, a page); "" for nowhere.
    """

    def __init__(self, reason: str, link: str = "") -> None:
        self.reason, self.link = line(reason), line(link)
        super().__init__(f"{self.reason} ({self.link})" if self.link else self.reason)


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


TIMEOUT = 600.0
