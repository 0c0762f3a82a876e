"""Peers at the probes of the exact lane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conformance.judge.exact.moves import examine_probe
from conformance.judge.exact.probes import probes
from conformance.measure.finding import Finding
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref.backend import NUMPY
from t5g2ref.config import Config


def examined(peer: Any, target: Target, name: str, **keywords: Any) -> list[Finding]:
    """Findings of the named probe on this peer, opened."""
    (found,) = [p for p in probes(target.config) if p.case.name == name]
    peer.open(target)
    return examine_probe(peer, target, peer.dtype, found, **keywords)[0]


class Other(ReferencePeer):
    """The reference with another configuration than the checkpoint's."""

    def __init__(self, change: Callable[[Config], Config], dtype: Any = "float32") -> None:
        super().__init__(NUMPY, dtype)
        self._change = change

    def open(self, target: Target) -> None:
        super().open(replace(target, config=self._change(target.config)))


def with_decoder(wider: int, dtype: str = "float32") -> Other:
    def change(config: Config) -> Config:
        part = config.decoder
        return replace(config, decoder=replace(part, sliding_window=part.sliding_window + wider))

    return Other(change, dtype)
