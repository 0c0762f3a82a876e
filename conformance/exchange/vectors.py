"""Test vectors: what a port is given, what it should find, and how far off each token may be, as files.

`vectors.json` says what there is. `inputs.safetensors` has the inputs. A file a number type, `float32.safetensors` and
so on, has three tensors of each tap of each call of each case, in the order of the computation:

    short/0/decoder.layers.3            (n, features) F32: the truth at the n tokens that are compared
    short/0/decoder.layers.3@allowed    (n,) F32: the largest ‖port − truth‖ that each of them may have
    short/0/decoder.layers.3@compared   U8 over the tap's token axes: 1 where a token is compared, n times

A program needs one such file, and none of the JSON, to judge what a port wrote under the first of these names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases.case import Case
from conformance.cases.plan import plan_of, required, shape_of, sizes
from conformance.exchange import case_words, writing
from conformance.exchange.geometry import fields_of
from conformance.measure.limits import LIMITS
from conformance.oracle.expected import MOST_LOGITS, MOST_TOKENS, Expected, expected_of
from conformance.target import Target
from t5g2ref import __version__
from t5g2ref.dtypes import RUN_IN, DType
from t5g2ref.files import write_text

FORMAT, VERSION = "t5g2ref-vectors", 1
DOCUMENT, INPUTS = "vectors.json", "inputs.safetensors"
FILES = (INPUTS, *(f"{dtype}.safetensors" for dtype in RUN_IN))
NAMES = {
    "expected": "CASE/CALL/TAP",
    "allowed": "CASE/CALL/TAP@allowed",
    "compared": "CASE/CALL/TAP@compared",
}
"""How the three tensors of a tap are called: said in the document, for whoever reads nothing else."""
Tensors = dict[str, np.ndarray[Any, Any]]
Said = Callable[[str], None]


def write(folder: Path, target: Target, cases: list[Case], types: tuple[DType, ...], said: Said) -> dict[str, Any]:
    """Write vectors of these cases in these types, the document last; returns the document.

    Args:
        said: called once before each case in each type.
    """
    made_for = _checkpoint(target)
    marks = {"format": FORMAT, "version": str(VERSION)}
    prints = {"weights": made_for["fingerprint"], "config": made_for["config_fingerprint"]}
    entries = {case.name: _words(target, case) for case in cases}
    files = {}
    for dtype in types:
        path = folder / f"{dtype}.safetensors"
        writing.tensors(path, _of_type(target, cases, dtype, entries, said), marks | {"type": dtype} | prints)
        files[dtype] = _file(path)
    width = target.config.decoder.hidden_size
    given = {f"{case.name}/{name}": value for case in cases for name, value in case_words.inputs(case, width).items()}
    writing.tensors(folder / INPUTS, given, marks | prints)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "writer": f"t5g2ref {__version__}",
        "checkpoint": made_for,
        "limit": LIMITS["cumulative"],
        "most_tokens": MOST_TOKENS,
        "most_logits": MOST_LOGITS,
        "names": NAMES,
        "inputs": _file(folder / INPUTS),
        "types": files,
        "cases": entries,
    }
    write_text(folder / DOCUMENT, json.dumps(document, indent=1) + "\n")
    return document


def _checkpoint(target: Target) -> dict[str, Any]:
    """What the vectors are of: weights and configuration, each with one fingerprint."""
    weights = case_words.fingerprint(case_words.fingerprints(target.weights, target.backend))
    config = fields_of(target.config)
    lines = "".join(f"{name} {json.dumps(value)}\n" for name, value in sorted(config.items()))
    print_of_config = hashlib.sha256(lines.encode()).hexdigest()
    return {"name": target.name, "fingerprint": weights, "config_fingerprint": print_of_config, "config": config}


def _file(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _words(target: Target, case: Case) -> dict[str, Any]:
    """The case's entry: what it is, what it is given, and which taps its calls have, with axes and shapes."""
    said = case_words.words(target.config, case)
    runs = [
        run | {"inputs": {field: f"{case.name}/{name}" for field, name in run["inputs"].items()}}
        for run in said["runs"]
    ]
    calls = [{"run": call["run"], "decoder": call["decoder"], "taps": dict[str, Any]()} for call in said["calls"]]
    for call, tap in plan_of(target.config, case):
        if required(tap):
            calls[call]["taps"][tap.name] = [tap.shape, list(shape_of(tap, sizes(target.config, case, call, tap)))]
    what = {"title": case.title, "task": case.task, "exposes": list(case.exposes), "types": [], "unclear": {}}
    return what | {"runs": runs, "calls": calls}


def _of_type(target: Target, cases: list[Case], dtype: DType, entries: dict[str, Any], said: Said) -> Tensors:
    """All tensors of one type; each case's entry learns that it is there, and what of it is unclear."""
    tensors: Tensors = {}
    for case in cases:
        said(f"{case.name}: truth and controls in {dtype}")
        if not case.asks(dtype):
            continue
        expected, unclear = expected_of(target, case, dtype)
        entries[case.name]["types"].append(dtype)
        if unclear:
            entries[case.name]["unclear"][dtype] = unclear
        for one in expected:
            tensors |= dict(_tensors(case, one))
    return tensors


def _tensors(case: Case, one: Expected) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    name = f"{case.name}/{one.call}/{one.tap.name}"
    yield name, one.values
    yield f"{name}@allowed", one.allowed
    yield f"{name}@compared", one.compared
