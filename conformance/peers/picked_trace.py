"""A trace that keeps the picked tokens of a long run, also where the model goes through a row in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.cases import picked
from conformance.cases.case import Run
from t5g2ref.taps import Tap
from t5g2ref.trace import Sink, Trace

Put = Callable[[str, Any], object]


class PickedTrace(Trace):
    """Gives each tap's picked tokens to `put`, once all of them have been seen.

    Args:
        run: a run with picked tokens.
        taps: the call's taps by their names.
        join: puts arrays one behind the other along an axis.
    """

    parts = True

    def __init__(self, run: Run, taps: dict[str, Tap], put: Put, join: Callable[[list[Any], int], Any]) -> None:
        self._run, self._taps, self._put, self._join = run, taps, put, join
        self._kept: dict[str, list[Any]] = {}
        super().__init__(self._seen)

    def _seen(self, name: str, value: Any) -> Any:
        tap = self._taps.get(name)
        self._put(name, value if tap is None else picked.shown(self._run.picked, tap, value))
        return value

    def at(self, name: str) -> Trace:
        return _Inside(self, f"{name}." if name else "", self._seen)

    def part(self, first: int) -> Trace:
        return self.at("").part(first)

    def of_part(self, name: str, value: Any, first: int) -> Any:
        """A part of a tap's tokens, in order; with the last one the tap is whole."""
        tap, chosen = self._taps[name], self._run.picked
        axis = picked.axis(tap)
        assert axis is not None
        assert chosen is not None
        positions = None if picked.whole(tap) else chosen.at(tap)
        last, shown = first + value.shape[axis], value
        if positions is not None:
            inside = positions[(positions >= first) & (positions < last)] - first
            shown = value[(slice(None),) * axis + (np.asarray(inside).tolist(),)]
        self._kept.setdefault(name, []).append(shown)
        if last == self._length(tap):
            self._put(name, self._join(self._kept.pop(name), axis))
        return value

    def _length(self, tap: Tap) -> int:
        run = self._run
        return int((run.input_ids if tap.rows == "encoder" else run.decoder_input_ids).shape[1])


class _Inside(Trace):
    """The same, some modules further in, or for a part of the row; a part may have parts itself."""

    parts = True

    def __init__(self, whole: PickedTrace, prefix: str, sink: Sink, first: int = 0) -> None:
        super().__init__(sink, prefix)
        self._whole, self._first = whole, first

    def at(self, name: str) -> Trace:
        return _Inside(self._whole, f"{self._prefix}{name}.", self._sink, self._first)

    def part(self, first: int) -> Trace:
        whole, begin = self._whole, self._first + first
        return _Inside(whole, self._prefix, lambda name, value: whole.of_part(name, value, begin), begin)
