"""Dumps for the tests: the reference's own float32 run, written as a stranger would, and then spoilt in every way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases import catalogue as cases
from conformance.cases.case import Case
from conformance.cases.plan import minimum
from conformance.checkpoints import resolve
from conformance.exchange import writing
from conformance.oracle.run_case import models, program
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.dtypes import HALF, DType
from t5g2ref.trace import Trace, recorder

Array = np.ndarray[Any, Any]
Calls = list[dict[str, Array]]
TINY = str(bundled("tiny"))
LAYER = "decoder.layers.3"  # the tap that most tests spoil


def tiny(name: str = TINY) -> Target:
    """The bundled checkpoint under its path, or under its name with its brother."""
    return resolve(name, synthetic=False)[0]


def case_of(target: Target, name: str) -> Case:
    return next(case for case in cases.build(target.config) if case.name == name)


def recorded(target: Target, case: Case, dtype: DType = "float32") -> Calls:
    """Every tap and the ids of every call, from our own run in `dtype`."""
    case, calls = case.given(dtype), []
    for run, (first, last) in case.calls:
        ids = {"decoder_input_ids": np.asarray(run.decoder_input_ids[:, first:last], np.int64)}
        calls.append(ids | ({"input_ids": np.asarray(run.input_ids, np.int64)} if first == 0 else {}))
    model = models(target.config, target.rounded(dtype), case, dtype)[1]
    traces = [recorder(call) for call in calls]

    def trace_of(call: int) -> Trace:
        return traces[call]

    program(case)(model, trace_of)
    if dtype in HALF:
        for call in calls:
            for name, value in call.items():
                if value.dtype == np.float32 and name != "loss":
                    call[name] = value.astype(HALF[dtype])
    return calls


def least(target: Target, case: Case, calls: Calls) -> Calls:
    """Only what every dump has to show."""
    return [
        {name: call[name] for name in names} for call, names in zip(calls, minimum(target.config, case), strict=True)
    ]


Change = Callable[[Calls], None]


def write(
    folder: Path,
    *names: str,
    full: bool = False,
    change: Change = lambda calls: None,
    dtype: DType = "float32",
    **fields: Any,
) -> Path:
    """A dump of these cases (default: short); `change` spoils the arrays of each, `fields` replace the manifest's."""
    target, entries = tiny(), {}
    for name in names or ("short",):
        case = case_of(target, name)
        calls = recorded(target, case, dtype)
        calls = calls if full else least(target, case, calls)
        change(calls)
        for number, call in enumerate(calls):
            writing.tensors(folder / name / f"{number}.safetensors", call)
        entries[name] = [{"file": f"{name}/{number}.safetensors"} for number in range(len(calls))]
    document = {
        "format": "t5g2ref-dump",
        "version": 1,
        "peer": {"name": "stranger", "dtype": dtype, "versions": {"stranger": "1.0"}},
        "checkpoint": TINY,
        "cases": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(document | fields))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's object in place."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def at(name: str, change: Callable[[Array], Array], call: int = 0) -> Callable[[Calls], None]:
    """Replace one array of a dump."""

    def spoil(calls: Calls) -> None:
        calls[call][name] = np.ascontiguousarray(change(calls[call][name]))

    return spoil


def without(*names: str, call: int = 0) -> Callable[[Calls], None]:
    def spoil(calls: Calls) -> None:
        for name in names:
            del calls[call][name]

    return spoil
