"""What a backend gives that computes a decoding step as a whole, or many: `t5g2ref/one_step.py` asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Array = Any


@dataclass(frozen=True)
class Whole:
    """One position through all layers.

    Args:
        hidden: (B, 1, D), behind the last norm.
        layers: what each shows, by the last part of its tap's name, (B, 1, width); "" is the layer's result.
    """

    hidden: Array
    layers: Sequence[Mapping[str, Array]]


@dataclass(frozen=True)
class Chunk:
    """What a call of `Steps.next` made.

    Args:
        ids: (B, T), fewer where all rows have ended.
        logits: (B, T, V), of each choice.
        running: bool (B,), whether a row still has not ended.
        sound: whether all logits are finite, or −∞.
    """

    ids: Array
    logits: Array
    running: Array
    sound: bool
