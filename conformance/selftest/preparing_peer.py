"""A peer with a fault in its processor: ours, wrong on purpose. It has no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.defects.injection import Fault
from conformance.judge.pictured import rule_of
from conformance.peers.protocol import OptionalMembers
from conformance.target import Target
from t5g2ref.processor.image import preprocess


class PreparingPeer(OptionalMembers):
    """Our processor, or a fault's where it has one."""

    name, dtype = "t5g2ref", "float32"

    def __init__(self, fault: Fault | None = None) -> None:
        self._prepared = None if fault is None else fault.prepared
        self._target: Target | None = None

    def versions(self) -> dict[str, str]:
        return {}

    def open(self, target: Target) -> None:
        self._target = target

    def run(self, case: Case, dump: Dump) -> None:
        """Nothing is shown of a model."""

    def close(self) -> None:
        """Nothing is held."""

    def preprocess(self, file: Path) -> Any:
        assert self._target is not None, "open() comes first"
        rule, side = rule_of(self._target), self._target.config.vision.image_size
        return preprocess(file, side, rule=rule) if self._prepared is None else self._prepared(file, rule, side)
