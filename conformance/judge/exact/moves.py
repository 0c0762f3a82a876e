"""Judges what moved in a probe: compares a peer's runs with the rules of attention, place by place.

Each place is judged by what the peer itself showed at the place before it, as under the local anchor. So a wrong mask
fails in its own layer and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.arrays import on_device, to_host
from conformance.judge.exact.probes import Array, Change, Probe, Stage, stages
from conformance.measure import limits
from conformance.measure.finding import Finding
from conformance.oracle.run_case import program
from conformance.peers.protocol import Peer
from conformance.target import Target
from t5g2ref.backend import NUMPY
from t5g2ref.dtypes import DType, unit_roundoff
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import EXACT, SDPA, Numerics
from t5g2ref.params import tree
from t5g2ref.trace import Trace

LOOKED_AT = 3  # runs of a probe at most for which the reference says whether what stood still had to move

Shown = Callable[[str], bool]


class Moves(Dump):
    """A dump that keeps the base run's arrays and, of later runs, only which positions have other values.

    Args:
        calls: how many calls each run has.
        wanted: the taps that are looked at; others are dropped at once.
        dtype: the peer's.
    """

    def __init__(self, calls: int, wanted: set[str], dtype: str) -> None:
        super().__init__(NUMPY)
        self._each, self._wanted, self._dtype = calls, wanted, dtype
        self._base: dict[tuple[int, str], Array] = {}
        self._moved: dict[tuple[int, int, str], Array] = {}
        self._broken: dict[tuple[int, str], Array] = {}
        self._failures: dict[str, tuple[str, str]] = {}

    def put(self, name: str, value: Any, *, changing: bool = False) -> None:
        if name not in self._wanted:
            return
        run, call = divmod(self.calls - 1, self._each)
        if (call, name) in self._base if run == 0 else (run, call, name) in self._moved:
            raise ValueError(f"tap {name} was given twice in call {call} of run {run}")
        value = to_host(value) if on_device(value) else np.asarray(value)
        if str(value.dtype) != self._dtype:
            self._failures.setdefault(name, ("dtype", f"expected {self._dtype}, found {value.dtype}"))
        if value.ndim != 3:
            self._failures.setdefault(name, ("shape", f"expected three axes, found {tuple(value.shape)}"))
        if name not in self._failures:
            self._look(name, run, call, value.copy() if changing and run == 0 else value)

    def _look(self, name: str, run: int, call: int, value: Array) -> None:
        base = self._base.setdefault((call, name), value)
        if base.shape != value.shape:
            found = f"expected {base.shape} as in the base run, found {value.shape} in run {run}"
            self._failures.setdefault(name, ("shape", found))
            return
        with np.errstate(invalid="ignore"):
            wide = value.astype(np.float32, copy=False)
            moved = (wide != base.astype(np.float32, copy=False)).any(axis=2)
        self._moved[run, call, name] = moved
        before = self._broken.get((call, name), np.zeros_like(moved))
        self._broken[call, name] = before | ~np.isfinite(wide).all(axis=2)

    def base(self, name: str, calls: int) -> Array | None:
        """The base run's array, its calls joined; None where one is missing."""
        parts = [self._base.get((call, name)) for call in range(calls)]
        return None if any(part is None for part in parts) else np.concatenate(parts, axis=1)  # type: ignore[arg-type]

    def moved(self, run: int, name: str, calls: int) -> Array:
        """bool (B, positions): where the run's values are not the base's. Ask only where `failure` gives None."""
        return np.concatenate([self._moved[run, call, name] for call in range(calls)], axis=1)

    def failure(self, stage: Stage, runs: int, calls: int, valid: Array) -> tuple[str, str] | None:
        """Why a place cannot be judged, as status and detail; None where it can.

        Args:
            valid: bool (B, positions shown).
        """
        if stage.tap in self._failures:
            return self._failures[stage.tap]
        if any((run, call, stage.tap) not in self._moved for run in range(runs) for call in range(calls)):
            return "missing", "the peer does not show it in every call"
        expected, found = (*valid.shape, stage.width), [self._base[call, stage.tap].shape for call in range(calls)]
        if (found[0][0], sum(f[1] for f in found), found[0][2]) != expected:
            return "shape", f"expected (rows, positions, width) = {expected}, found {' and '.join(map(str, found))}"
        broken = valid & np.concatenate([self._broken[call, stage.tap] for call in range(calls)], axis=1)
        if broken.any():
            row, position = (int(i) for i in np.argwhere(broken)[0])
            return "nan", f"expected finite numbers, found NaN or infinity at row {row}, position {position}"
        return None


@dataclass
class _Tally:
    """What was seen at one place: how many positions were tested, and (run, row, position) of the wrong ones."""

    must: int = 0
    still: int = 0
    faint: int = 0
    leaks: list[tuple[int, int, int]] = field(default_factory=list)
    blind: list[tuple[int, int, int]] = field(default_factory=list)

    def words(self) -> str:
        """What a pass rests on, in words, even where nothing could have failed."""
        moved = f"{self.must - self.faint} positions had to move and did" if self.must else "nothing had to move"
        still = f"{self.still} had to stay and did" if self.still else "everything is in reach, nothing could leak"
        return f"{moved}, {still}" + (f", {self.faint} too faint to be seen in this precision" if self.faint else "")


def examine_probe(
    peer: Peer, target: Target, dtype: DType, probe: Probe, shown: Shown = lambda _: True
) -> tuple[list[Finding], Moves]:
    """Run a probe on an opened peer and judge every place that it shows.

    Returns one finding for each place, in order, and what was seen. Raises whatever the peer raises.
    """
    case = probe.case.given(dtype)
    places = [stage for stage in stages(target.config, case.runs[0]) if shown(stage.tap)]
    moves = Moves(len(case.runs[0].bounds), {stage.tap for stage in places}, dtype)
    peer.run(case.copied(), moves)  # copies, which the peer may change
    return _Judge(target, dtype, replace(probe, case=case), moves, shown).findings(), moves


class _Judge:
    def __init__(self, target: Target, dtype: DType, probe: Probe, moves: Moves, shown: Shown) -> None:
        self._probe, self._moves, self._shown = probe, moves, shown
        self._base = probe.case.runs[0]
        self._stages = list(stages(target.config, self._base))
        self._valid = {"encoder": self._base.encoder_valid, "decoder": self._base.decoder_valid}
        self._truth = _Truth(target, dtype, probe, {stage.tap for stage in self._stages})
        self._failures = {stage.tap: self._failure(stage) for stage in self._stages if shown(stage.tap)}

    def findings(self) -> list[Finding]:
        tallies = {stage.tap: _Tally() for stage in self._stages}
        for run, change in enumerate(self._probe.changes, 1):
            self._walk(run, change, tallies)
        return [self._finding(stage, tallies[stage.tap]) for stage in self._stages if self._shown(stage.tap)]

    def _calls(self, stage: Stage) -> int:
        return 1 if stage.stack == "encoder" else len(self._base.bounds)

    def _failure(self, stage: Stage) -> tuple[str, str] | None:
        valid = self._valid[stage.stack][:, -stage.keep if stage.keep else None :]
        return self._moves.failure(stage, len(self._probe.changes) + 1, self._calls(stage), valid)

    def _walk(self, run: int, change: Change, tallies: dict[str, _Tally]) -> None:
        """Judge one run along the whole model. The state is what moved at the last place that the peer shows."""
        state = {"encoder": change.encoder, "decoder": change.decoder}
        for stage in self._stages:
            valid, before = self._valid[stage.stack], state[stage.stack]
            reached: Array = np.asarray((state["encoder"] & self._valid["encoder"]).any(axis=1))
            crossed = reached if stage.stack == "decoder" else np.zeros_like(reached)
            expected = stage.after(before, valid, crossed) | (change.images if stage.images else False)
            state[stage.stack] = expected
            if not self._shown(stage.tap) or self._failures[stage.tap]:
                continue
            seen = self._moves.moved(run, stage.tap, self._calls(stage))
            kept = slice(-stage.keep if stage.keep else None, None)
            self._count(tallies[stage.tap], stage, run, expected[:, kept], seen, valid[:, kept])
            if not stage.keep:
                state[stage.stack] = seen

    def _count(self, tally: _Tally, stage: Stage, run: int, expected: Array, seen: Array, valid: Array) -> None:
        """Shapes: expected, seen, valid bool (B, positions shown)."""
        change = self._probe.changes[run - 1]
        meant = np.array([bool(words) for words in change.rows])[
            :, None
        ]  # rows without a change only show whether the peer is steady
        tally.must += int((expected & valid).sum())
        tally.still += int((~expected & valid & meant).sum())
        first = 0 if stage.keep is None else self._valid[stage.stack].shape[1] - valid.shape[1]
        leaks, blind = seen & ~expected & valid, expected & ~seen & valid
        if blind.any():
            clear = blind & self._truth.clear(run, stage.tap)
            tally.faint += int((blind & ~clear).sum())
            blind = clear
        tally.leaks += [(run, int(row), int(at) + first) for row, at in np.argwhere(leaks)]
        tally.blind += [(run, int(row), int(at) + first) for row, at in np.argwhere(blind)]

    def _finding(self, stage: Stage, tally: _Tally) -> Finding:
        name, tested = self._probe.case.name, tally.must + tally.still
        failure = self._failures[stage.tap]
        if failure:
            return Finding(stage.tap, 0, failure[0], detail=f"{name}: {failure[1]}")
        if not tested:
            return Finding(stage.tap, 0, "missing", detail=f"{name}: no valid position was tested")
        for wrong, words in ((tally.leaks, self._leak), (tally.blind, self._blind)):
            if wrong:
                status, detail = words(*wrong[0])
                detail = f"{name}: {detail}; {len(wrong)} of {tested} positions"
                return Finding(stage.tap, 0, status, token=wrong[0][1:], tokens=tested, detail=detail)
        return Finding(stage.tap, 0, "pass", tokens=tested, detail=f"{name}: {self._probe.what}: {tally.words()}")

    def _leak(self, run: int, row: int, position: int) -> tuple[str, str]:
        change = self._probe.changes[run - 1]
        if not any(change.rows):
            return "missing", (
                f"the same input twice gave other bits at position {position}, so nothing can be concluded; turn on "
                "the peer's deterministic kernels"
            )
        if not change.rows[row]:
            return (
                "mask",
                f"position {position} moved in row {row}, where nothing was changed: rows depend on each other",
            )
        why = "" if self._probe.status == "exact" else ", which is out of its reach"
        return self._probe.status, f"changing {change.rows[row]} moved position {position}{why}"

    def _blind(self, run: int, row: int, position: int) -> tuple[str, str]:
        words = self._probe.changes[run - 1].rows[row]
        return "mask", f"changing {words} did not move position {position}, which sees it"


class _Truth:
    """The reference on a probe: says whether what stood still had to move. It runs only where something stood still.

    A change smaller than the peer's own legal error may vanish in a rounding: a softmax weight of 1e-4 in bfloat16,
    say. Let two runs of the peer be equal to the bit, and their truths Δ apart. Then at least one run has an error of
    ‖Δ‖ / 2 or more. So where Δ is several times the control's error, no legal rounding hid it.
    """

    def __init__(self, target: Target, dtype: DType, probe: Probe, wanted: set[str]) -> None:
        self._probe, self._wanted, self._dtype = probe, wanted, dtype
        weights, backend = tree(target.rounded(dtype)), target.backend
        exact = Numerics("float64", EXACT, backend, embed_dtype=dtype)
        self._models = [T5Gemma2(target.config, weights, nx) for nx in (exact, Numerics(dtype, SDPA, backend))]
        self._clear: dict[int, dict[str, Array]] = {}

    def clear(self, run: int, tap: str) -> Array:
        """bool (B, positions shown): where the truth moves by more than roundings could hide.

        It is False everywhere once LOOKED_AT runs were compared. The first question about a run walks no further than
        its tap. Most often that is an early one, and no other follows.
        """
        if run not in self._clear and len(self._clear) < LOOKED_AT:
            self._clear[run] = self._compared(run, tap)
        elif run in self._clear and tap not in self._clear[run]:
            self._clear[run] = self._compared(run, "")
        return self._clear.get(run, {}).get(tap, np.zeros((), bool))

    def _compared(self, run: int, until: str) -> dict[str, Array]:
        """What `clear` answers, by tap, up to and including `until`; at all taps for ""."""
        exact, rounding = self._models
        truth, control, other = (self._seen(m, r, until) for m, r in ((exact, 0), (rounding, 0), (exact, run)))
        found, unit = {}, unit_roundoff(self._dtype)
        for tap, value in truth.items():
            error = np.maximum(_norm(control[tap] - value), unit * _norm(value))
            found[tap] = _norm(other[tap] - value) > limits.PROBE_CLEAR * error
        return found

    def _seen(self, model: T5Gemma2, run: int, until: str) -> dict[str, Array]:
        """Every wanted tap of one run, in float64 on the host, its calls joined."""
        parts: dict[str, list[Array]] = {}
        case = replace(self._probe.case, runs=(self._probe.case.runs[run],))
        calls = 1 if until.startswith("encoder.") else len(case.runs[0].bounds)

        def look(name: str, value: Any) -> Any:
            if name in self._wanted:
                parts.setdefault(name, []).append(model.nx.backend.host(model.nx.wide(value)).astype(np.float64))
            if name == until and len(parts[name]) == calls:
                raise _Enough
            return value

        with suppress(_Enough):
            program(case)(model, lambda _: Trace(look))
        full = {name: 1 if name.startswith("encoder.") else len(case.runs[0].bounds) for name in parts}
        return {name: np.concatenate(values, axis=1) for name, values in parts.items() if len(values) == full[name]}


class _Enough(Exception):
    """Raised once everything that was asked for was seen."""


def _norm(x: Array) -> Array:
    """‖x‖ over the last axis."""
    return np.asarray(np.sqrt((x * x).sum(axis=-1)))
