"""Puts a case into words and tensors, for a program of others. Files of `export` and a process get the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from conformance.cases.case import Case
from conformance.cases.least import least
from conformance.cases.plan import minimum, plan_of, shape_of, sizes
from t5g2ref.backend import Backend
from t5g2ref.config import Config

Array = np.ndarray[Any, Any]
FIELDS = (
    *("input_ids", "attention_mask", "position_ids", "pixel_values"),
    *("decoder_input_ids", "decoder_attention_mask", "decoder_position_ids", "labels"),
)


def inputs(case: Case, width: int) -> dict[str, Array]:
    """Every input of the case: `run0.input_ids`, …, and a classifier's head as `head.score.out_proj.weight`.

    Ids, masks, positions and class labels are int64, pictures float32, other labels float64.
    """
    out = {}
    for number, run in enumerate(case.runs):
        for field in FIELDS:
            value = getattr(run, field)
            if value is not None:
                wide = np.int64 if value.dtype.kind in "iub" else value.dtype
                out[f"run{number}.{field}"] = np.asarray(value, wide)
    return out | {f"head.{name}": np.asarray(value, np.float32) for name, value in case.head(width).items()}


def words(config: Config, case: Case) -> dict[str, Any]:
    """The case without its taps: its title and task, its runs with the names of their inputs, its calls."""
    number = {id(run): i for i, run in enumerate(case.runs)}
    return {
        "title": case.title,
        "task": case.task,
        "num_labels": case.num_labels,
        "runs": [
            {
                "inputs": {f: f"run{i}.{f}" for f in FIELDS if getattr(run, f) is not None},
                "derived": run.derived,
                "cached": run.splits is not None,
                "logits_to_keep": run.logits_to_keep,
            }
            for i, run in enumerate(case.runs)
        ],
        "calls": [
            {"run": number[id(run)], "decoder": list(bounds), "minimum": names, "least": one}
            for (run, bounds), names, one in zip(case.calls, minimum(config, case), least(config, case), strict=True)
        ],
        "head": sorted(f"head.{name}" for name in case.head(config.decoder.hidden_size)),
    }


def tap_shapes(config: Config, case: Case) -> list[dict[str, list[Any]]]:
    """For each call, every tap of a full dump → [its axes in letters, its shape]."""
    calls: list[dict[str, list[Any]]] = [{} for _ in case.calls]
    for call, tap in plan_of(config, case):
        calls[call][tap.name] = [tap.shape, list(shape_of(tap, sizes(config, case, call, tap)))]
    return calls


def fingerprints(weights: Mapping[str, Any], backend: Backend) -> dict[str, str]:
    """Canonical name → sha256 of the tensor's bytes in float32, row by row, little-endian."""
    return {
        name: hashlib.sha256(
            np.ascontiguousarray(backend.host(value), "<f4").reshape(-1).view(np.uint8).data
        ).hexdigest()
        for name, value in weights.items()
    }


def fingerprint(each: Mapping[str, str]) -> str:
    """One fingerprint for all weights: sha256 of the lines `name sha256`, sorted by name."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(each.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
