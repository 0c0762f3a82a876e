"""Taps: named places in the model where a value can be seen, or exchanged for another one.

The model is written as `y = trace("self_attn.o_proj", y)`. With `OFF`, the default everywhere, that returns `y`
and costs one call. A `Trace` hands name and value to a sink; what the sink returns is what the model goes on
with, so that recording, comparing and restarting from someone else's activations are three kinds of sink.
The names, their shapes and their order are declared in `taps.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Sink = Callable[[str, Any], Any]


class Trace:
    """Calls `sink(full_name, value)` at every tap and returns what the sink returns.

    Args:
        sink: takes the tap's full dotted name and its array; returns the array that the model uses from there on.
        prefix: dotted path in front of every name, with its trailing dot.
    """

    active = True
    parts = False  # whether a tap may be shown as parts of a long row, one after the other

    def __init__(self, sink: Sink, prefix: str = "") -> None:
        self._sink = sink
        self._prefix = prefix

    def __call__(self, name: str, value: Any) -> Any:
        return self._sink(self._prefix + name, value)

    def at(self, name: str) -> Trace:
        """The same trace one module further in: `trace.at("layers.3")("mlp", y)` taps `…layers.3.mlp`."""
        return Trace(self._sink, f"{self._prefix}{name}.")

    def part(self, first: int) -> Trace:
        """The same trace for the part of a row that begins at token `first`; for one that takes parts."""
        raise ValueError(f"a trace that takes no parts was given the one from token {first} on: look at `parts` first")

    def lazy(self, name: str, make: Callable[[], Any]) -> None:
        """A tap whose value the model itself does not need (a dense mask): made only when someone listens."""
        self(name, make())


class _Off(Trace):
    active, parts = False, True

    def __init__(self) -> None:
        super().__init__(lambda _, value: value)

    def __call__(self, name: str, value: Any) -> Any:
        return value

    def at(self, name: str) -> Trace:
        return self

    def part(self, first: int) -> Trace:
        return self

    def lazy(self, name: str, make: Callable[[], Any]) -> None:
        return None


OFF: Trace = _Off()


def recorder(into: dict[str, Any]) -> Trace:
    """A trace that stores each tap's value in `into` under its full name; a name seen twice is an error."""

    def sink(name: str, value: Any) -> Any:
        if name in into:
            raise ValueError(f"tap {name} was recorded twice in one call: record each call into its own dict")
        into[name] = value
        return value

    return Trace(sink)
