"""A function that returns logits as a peer: a black box of text, for a port's own tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.peers.guard import MOST, line
from conformance.peers.protocol import OptionalMembers
from conformance.target import Target

Logits = Callable[..., Any]
INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")


class FunctionPeer(OptionalMembers):
    """Calls `function` once for each run, with each of INPUTS by its name: int64 (B, S) or (B, T), None for a mask that
    is not given. It returns logits (B, T, V), as an array or as what NumPy makes one of.

    Args:
        dtype: the type that it runs in. Its logits may be wider.
    """

    taps = ("logits",)
    lacks = ("images", "cache", "positions", "labels", "classes")

    def __init__(self, function: Logits, dtype: str) -> None:
        self.name = line(getattr(function, "__name__", "") or type(function).__name__)[:MOST]
        self.dtype, self._function = dtype, function

    def versions(self) -> dict[str, str]:
        return {}

    def open(self, target: Target) -> None:
        """Nothing: it has its weights."""

    def close(self) -> None:
        """Nothing: they are not ours."""

    def run(self, case: Case, dump: Dump) -> None:
        for run in case.runs:
            given = {name: getattr(run, name) for name in INPUTS}
            logits = np.asarray(self._function(**given))
            dump.new_call()
            dump.put("logits", logits if run.logits_to_keep is None else logits[:, -run.logits_to_keep :])
