"""One tap for the gates: arrays of every shape in the table, and a peer that is so much off."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers import Array

from conformance.measure.finding import Finding
from conformance.measure.ratio import examine
from t5g2ref.taps import Tap

VALUES = Tap("decoder.norm", "B T D", "decoder", "norm:out")
MASK = Tap("decoder.layers.0.self_attn.mask", "B T S", "decoder", "self_attn:mask")
LIMIT = 8.0


# Every shape of the tap table: the axes that count tokens, one array shape, and the index of one of its tokens.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "B T D": ((0, 1), (2, 5, 6), (1, 3)),
    "B T F": ((0, 1), (2, 5, 9), (1, 3)),
    "B T H": ((0, 1), (2, 5, 4), (1, 3)),
    "B T V": ((0, 1), (2, 5, 31), (1, 3)),
    "B T C": ((0, 1), (2, 5, 3), (1, 3)),
    "B T N*H": ((0, 1), (2, 5, 12), (1, 3)),
    "B T K*H": ((0, 1), (2, 5, 8), (1, 3)),
    "B S K*H": ((0, 1), (2, 7, 8), (1, 6)),
    "B N T H": ((0, 2), (2, 3, 5, 4), (1, 3)),
    "B K T H": ((0, 2), (2, 2, 5, 4), (1, 3)),
    "B K S H": ((0, 2), (2, 2, 7, 4), (1, 6)),
    "B T S": ((0, 1), (2, 5, 7), (1, 3)),  # a mask: its tokens are the queries, whose keys are compared together
    "I P D": ((0, 1), (2, 9, 6), (1, 8)),
    "I P F": ((0, 1), (2, 9, 5), (1, 8)),
    "I M D": ((0, 1), (2, 4, 6), (1, 2)),
    "B C": ((0,), (3, 4), (2,)),
    "": ((), (), ()),
}


def see(peer: Any, truth: Array, controls: list[Array], valid: Array | None = None, **change: Any) -> Finding:
    given: dict[str, Any] = {"tap": VALUES, "call": 0, "dtype": "float32", "limit": LIMIT} | change
    return examine(given.pop("tap"), given.pop("call"), peer, truth, controls, valid, **given)


def off_by(truth: Array, error: float, *tokens: tuple[int, ...]) -> Array:
    """A float32 copy whose first feature is off by `error`, at all tokens or at some of a (B, T, D) array."""
    out = truth.astype(np.float32)
    for token in tokens or list(np.ndindex(truth.shape[:-1])):
        out[(*token, 0)] += np.float32(error)
    return out
