"""What a backend gives that computes a decoding step as a whole, or many: `t5g2ref/one_step.py` asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


class Narrowing(Protocol):
    """How a distribution is narrowed before an id is drawn from it: `generate.rules.Sampling`."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


@dataclass(frozen=True)
class Chunk:
    """What a call of `Steps.next` made.

    Args:
        ids: (B, T), fewer where all rows have ended.
        logits: (B, T, V), of each choice.
        running: bool (B,), whether a row still has not ended.
        sound: whether all logits are finite, or −∞; over the temperature too, where ids are drawn.
        log_probs: (B, T) float64, of each id in the distribution that it was drawn from; None for the likeliest ids.
    """

    ids: Array
    logits: Array
    running: Array
    sound: bool
    log_probs: Array | None = None
