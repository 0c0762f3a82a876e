"""What a port would write for test vectors: the reference's own run, right or with a fault, as a file of its taps."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from dumping import Array, case_of

from conformance.activations import Dump
from conformance.cases.plan import plan_of, required
from conformance.exchange import writing
from conformance.peers.protocol import Peer
from conformance.target import Target

Shown = dict[str, Array]


def shown(peer: Peer, target: Target, names: Iterable[str]) -> Shown:
    """CASE/CALL/TAP → float32 of what the peer has there, up to where it raises; only taps that vectors have."""
    found: Shown = {}
    peer.open(target)
    for name in names:
        case = case_of(target, name).given(peer.dtype)
        with Dump() as dump:
            with suppress(Exception):
                peer.run(case.copied(), dump)
            for call, tap in plan_of(target.config, case):
                if required(tap) and (value := dump.get(call, tap.name)) is not None:
                    found[f"{name}/{call}/{tap.name}"] = np.asarray(value).astype(np.float32)
    peer.close()
    return found


def written(path: Path, arrays: Shown) -> Path:
    writing.tensors(path, arrays)
    return path
