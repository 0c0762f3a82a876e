"""Puts the arrays of a file under the judge's names: undoes declared layouts, and compares ids on the spot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.cases.least import LOG_PROBS, LOGITS, OUTSIDE, PAIR, least, paired
from conformance.cases.plan import IDS, minimum, plan_of, shape_of, sizes, validity
from conformance.exchange.layouts import LayoutError, arranged, check
from conformance.exchange.manifest import Declared
from conformance.exchange.reading import DumpError, Tensors, truths
from conformance.measure.finding import Finding
from t5g2ref import taps
from t5g2ref.checkpoint.tensor import convert
from t5g2ref.config import Config
from t5g2ref.config.fields import short
from t5g2ref.taps import Tap

Array = np.ndarray[Any, Any]
LONGEST = 256  # characters of a name for which others are looked up: the work grows with their square
_GLOB = frozenset("*?[")
MOST_PATTERNS = 500  # globs in one object, each of which may be held against every tap
File = tuple[Tensors, Mapping[str, str]]
"""One call: its checked file, and tap → tensor in it."""


def chosen(patterns: Mapping[str, str], name: str) -> str | None:
    """What is declared for a tap: under its own name, else under the first glob that matches."""
    globs = ((p, v) for p, v in patterns.items() if _GLOB & set(p))
    return patterns.get(name, next((v for p, v in globs if fnmatchcase(name, p)), None))


def unknown(name: str, known: Iterable[str], what: str) -> NoReturn:
    """Raises DumpError for a name that is none of `known`, and suggests the nearest."""
    near = get_close_matches(name, list(known), 3) if len(name) <= LONGEST else []
    raise DumpError(f"{short(name)} is no {what}; " + (f"close: {', '.join(near)}" if near else "see `list`"))


def check_patterns(declared: Declared, config: Config) -> None:
    """Raises DumpError for a layout or type that is declared for no tap."""
    table = [t for task in ("lm", "sequence", "token") for t in taps.table(config, task=task, loss=True)]
    names = {tap.name for tap in table}
    fields = (("layouts", declared.layouts), ("stored", declared.stored), ("types", declared.types))
    for field, patterns in fields:
        globs = [pattern for pattern in patterns if pattern not in names]
        if len(globs) > MOST_PATTERNS:
            raise DumpError(f"{field} has {len(globs)} patterns, expected at most {MOST_PATTERNS} beside names of taps")
        for pattern in globs:
            if not any(fnmatchcase(name, pattern) for name in names):
                unknown(pattern, names, f"tap, nor a pattern of any, in {field}")


@dataclass(frozen=True)
class Shower:
    """Puts one case of one program into a dump.

    Args:
        declared: what the program says of its arrays.
        config: of the checkpoint.
    """

    declared: Declared
    config: Config
    case: Case

    def check(self, call: int, tensors: Tensors, names: Mapping[str, str]) -> None:
        """Raises DumpError unless every name is a tap of this call, with a tensor in the file and a fit layout."""
        plan = self._plan(call)
        for name, tensor in names.items():
            if name not in plan and name not in IDS and not self._pair(name, plan):
                self._refuse_name(name, call, plan)
            if tensor not in tensors.entries:
                raise DumpError(f"{short(tensors.name)}: no tensor {short(tensor)} in it, which should be {name}")
            if name in plan:
                try:
                    check(self._layout(plan[name]), plan[name])
                except LayoutError as error:
                    raise DumpError(f"layouts: {error}") from error

    def put_all(self, files: list[File], dump: Dump, findings: list[Finding]) -> None:
        """Put every call's arrays into `dump`, and what is found wrong into `findings`.

        Raises DumpError, after all of it, for ids of another input or where something is missing that it has to show.
        """
        for call, (tensors, names) in enumerate(files):
            dump.new_call()
            self.put(call, tensors, names, dump, findings)
        wrong = next((f for f in findings if f.tap in IDS), None)
        if wrong is not None:
            raise DumpError(f"{wrong.tap} of call {wrong.call}: {wrong.detail}; the program ran another input")
        if gone := [f"{name} (call {n})" for n, name in self._wanted(files) if name not in files[n][1]]:
            raise DumpError(f"the dump lacks {len(gone)} of what every dump has to show: {', '.join(gone[:8])}")

    def _wanted(self, files: list[File]) -> Iterator[tuple[int, str]]:
        """(call, name) of what the dump has to show: logits or log-probabilities where it shows nothing inside."""
        shown = {name for _, names in files for name in names}
        if not shown <= {*OUTSIDE, *IDS}:
            yield from ((n, name) for n, names in enumerate(minimum(self.config, self.case)) for name in names)
            return
        for n, name in enumerate(least(self.config, self.case)):
            pair = name == LOGITS and LOG_PROBS in files[n][1]
            yield from ((n, part) for part in (PAIR if pair else (name,)) if part)

    def _pair(self, name: str, plan: Mapping[str, Tap]) -> bool:
        """Whether a name is of log-probabilities, in a call that has logits which they may stand for."""
        return name in PAIR and LOGITS in plan and paired(self.case)

    def put(self, call: int, tensors: Tensors, names: Mapping[str, str], dump: Dump, findings: list[Finding]) -> None:
        """Put the call's arrays into the newest call of `dump`.

        Wrong ids, and arrays that do not have their declared layout, go into `findings`.
        """
        plan = self._plan(call)
        for name, tensor in names.items():
            if too_large := self._too_large(call, name, tensors.entries[tensor].shape):
                findings.append(too_large)
                continue
            array = tensors.read(tensor)
            if name in IDS:
                findings += self._ids(name, call, array)
                continue
            if name in PAIR:
                dump.put(name, array)
                continue
            tap, declared = plan[name], self._layout(plan[name])
            array = self._typed(tap, array, f"{short(tensors.name)}: {short(tensor)}")
            lengths = sizes(self.config, self.case, call, tap)
            try:
                keep = validity(self.case, call, tap, shape_of(tap, lengths))
                array = arranged(array, declared, tap, lengths, keep)
            except LayoutError as error:
                if declared != tap.shape:  # else the judge says the same
                    findings.append(Finding(name, call, "shape", detail=str(error)))
                if array.shape == shape_of(tap, lengths):  # the right shape, but another layout was declared
                    continue
            dump.put(name, array)

    def _too_large(self, call: int, name: str, shape: tuple[int, ...]) -> Finding | None:
        """A failing finding where the header claims more numbers than the tap has in any layout; else None."""
        if name in PAIR:  # as many numbers as the logits at most
            tap = self._plan(call)[LOGITS]
            axes, expected = "B T k", shape_of(tap, sizes(self.config, self.case, call, tap))
        elif name in IDS:
            axes, expected = IDS[name], self._given(name, call).shape
        else:
            tap = self._plan(call)[name]
            axes, expected = tap.shape, shape_of(tap, sizes(self.config, self.case, call, tap))
        if math.prod(shape) <= math.prod(expected):
            return None
        return Finding(name, call, "shape", detail=f"expected {axes} = {expected}, found {shape}")

    def _given(self, name: str, call: int) -> Array:
        """The ids that the call was given."""
        run, (first, last) = self.case.calls[call]
        return run.input_ids if name == "input_ids" else run.decoder_input_ids[:, first:last]

    def _plan(self, call: int) -> dict[str, Tap]:
        return self._plans[call]

    @cached_property
    def _plans(self) -> list[dict[str, Tap]]:
        """Each call's taps, made once: every array of every call is looked up in them."""
        plans: list[dict[str, Tap]] = [{} for _ in self.case.calls]
        for call, tap in plan_of(self.config, self.case):
            plans[call][tap.name] = tap
        return plans

    def _layout(self, tap: Tap) -> str:
        declared = chosen(self.declared.layouts, tap.name)
        return tap.shape if declared is None else declared

    def _typed(self, tap: Tap, array: Array, where: str) -> Array:
        """The array in its own type, where it was stored in another type without loss."""
        stored = chosen(self.declared.stored, tap.name)
        if tap.exact:
            return truths(array, where) if stored == "uint8" and array.dtype == np.uint8 else array
        if stored == "float32" and array.dtype == np.float32 and self.declared.dtype != "float32":
            narrow = convert(array, self.declared.dtype)
            same = (narrow.astype(np.float32) == array) | np.isnan(array)
            return narrow if same.all() else array  # other values keep their type, which the judge refuses
        return array

    def _ids(self, name: str, call: int, array: Array) -> list[Finding]:
        """The failing finding of wrong ids; none where they are right."""
        ids = self._given(name, call)
        expected = f"expected {IDS[name]} = {ids.shape}"
        if array.shape != ids.shape:
            return [Finding(name, call, "shape", detail=f"{expected}, found {array.shape}")]
        if array.dtype.kind not in "iu":
            return [Finding(name, call, "dtype", detail=f"{expected} integers, found {array.dtype}")]
        wrong = np.argwhere(array != ids)
        if not len(wrong):
            return []
        at = tuple(int(i) for i in wrong[0])
        seen = f"expected {ids[at]} at {at}, found {array[at]}; {len(wrong)} of {ids.size} ids differ"
        return [Finding(name, call, "exact", token=at, tokens=ids.size, detail=seen)]

    def _refuse_name(self, name: str, call: int, plan: Mapping[str, Tap]) -> NoReturn:
        elsewhere = {tap.name for _, tap in plan_of(self.config, self.case)}
        if name in elsewhere:
            raise DumpError(f"{short(name)} is made in the first call of a run only, not in call {call}")
        unknown(name, [*plan, *IDS], f"tap of call {call}")
