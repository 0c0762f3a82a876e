"""Sound dumps to spoil: the reference's own run of a case, as a stranger would write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from conformance.activations import Dump
from conformance.cases import catalogue
from conformance.cases.case import Case
from conformance.cases.plan import minimum
from conformance.checkpoints import resolve
from conformance.exchange import writing
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import NUMPY
from t5g2ref.dtypes import DType

Array = np.ndarray[Any, Any]
TINY = str(bundled("tiny"))
MANIFEST = "manifest.json"


def target() -> Target:
    return resolve(TINY, synthetic=False)[0]


def case_of(on: Target, name: str) -> Case:
    return next(case for case in catalogue.build(on.config) if case.name == name)


def calls(on: Target, case: Case, dtype: DType, *, full: bool) -> list[dict[str, Array]]:
    """Every tap of every call with its ids, or the least that a dump has to show."""
    peer = ReferencePeer(NUMPY, dtype)
    peer.open(on)
    out = []
    with Dump() as dump:
        peer.run(case.given(dtype), dump)
        for number, (run, (first, last)) in enumerate(case.calls):
            taps = {name: dump.get(number, name) for name in dump.names(number)}
            taps["decoder_input_ids"] = np.asarray(run.decoder_input_ids[:, first:last], np.int64)
            taps |= {"input_ids": np.asarray(run.input_ids, np.int64)} if first == 0 else {}
            out.append(taps)
    least = minimum(on.config, case)
    return out if full else [{n: call[n] for n in names} for call, names in zip(out, least, strict=True)]


def write(folder: Path, names: tuple[str, ...], dtype: DType = "float32", *, full: bool = False) -> None:
    """A dump of these cases, each tap named in the manifest."""
    on, cases = target(), {}
    for name in names:
        shown = calls(on, case_of(on, name), dtype, full=full)
        cases[name] = [{"file": f"{name}/{n}.safetensors", "taps": list(call)} for n, call in enumerate(shown)]
        for n, call in enumerate(shown):
            writing.tensors(folder / name / f"{n}.safetensors", call)
    if full:  # what stands for itself need not be said
        cases[names[0]] = [{"file": call["file"]} for call in cases[names[0]]]
    document = {
        "format": "t5g2ref-dump",
        "version": 1,
        "peer": {"name": "stranger", "dtype": dtype, "versions": {"stranger": "1.0"}},
        "checkpoint": {"name": TINY},
        "layouts": {"decoder.layers.3": "B T D", "*.embed_tokens": "B T D"},
        "stored": {"*.mask": "uint8"} if full else {},
        "cases": cases,
    }
    (folder / MANIFEST).write_text(json.dumps(document))
