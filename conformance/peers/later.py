"""A peer that is made when it is asked for something: importing torch takes seconds, and a run's workers do it too."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.cases.prompt import Answer, Prompt
from conformance.errors import PeerBroken
from conformance.peers.protocol import OptionalMembers, Peer, optional
from conformance.target import Target


class Later(OptionalMembers):
    """What a run has to know of a peer before it opens it, and the peer once it does.

    Args:
        name, dtype: the peer's.
        make: makes it. Raises PeerUnavailable.
        generates, prepares: whether it can be asked to generate, and has a processor of its own.
        known: its other optional members that are not the default.
    """

    def __init__(
        self,
        name: str,
        dtype: str,
        make: Callable[[], Peer],
        *,
        generates: bool = False,
        prepares: bool = False,
        **known: Any,
    ) -> None:
        self.name, self.dtype, self._make = name, dtype, make
        vars(self).update(known)
        if generates:
            self.generate = self._generate
        if prepares:
            self.preprocess = self._preprocess

    @cached_property
    def made(self) -> Peer:
        """The peer itself, under the name that this one has by now."""
        made = self._make()
        made.name = self.name
        return made

    def _generate(self, prompt: Prompt) -> Answer:
        answer: Answer = optional(self.made, "generate")(prompt)
        return answer

    def _preprocess(self, file: Path) -> Any:
        return optional(self.made, "preprocess")(file)

    def versions(self) -> dict[str, str]:
        return self.made.versions()

    def open(self, target: Target) -> None:
        self.made.open(target)

    def close(self) -> None:
        if "made" in vars(self):
            self.made.close()

    def run(self, case: Case, dump: Dump) -> None:
        self.made.run(case, dump)


def itself(peer: Peer, *, lone: bool = True) -> Peer:
    """The peer itself. One that is broken stays what it is beside others: it says so where it is opened."""
    try:
        return peer.made if isinstance(peer, Later) else peer
    except PeerBroken:
        if lone:
            raise
        return peer
