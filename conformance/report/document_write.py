"""Writes the result as a JSON document of a versioned schema. JUnit and the page are made from it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, astuple, fields
from typing import Any

from conformance.defects.catalogue import DEFECTS
from conformance.judge.judgement import Judgement
from conformance.measure.finding import Finding
from conformance.measure.limits import LIMITS
from conformance.report.result import Result

SCHEMA = 2


def as_json(result: Result) -> str:
    """The whole result as JSON. Numbers that JSON cannot hold (NaN, infinity) become strings."""
    document = {
        "schema": SCHEMA,
        "verdict": result.verdict,
        "line": result.last_line(),
        "limits": LIMITS,
        "environment": result.environment | result.versions,
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
        "cases": {"selected": result.selected, "available": result.available},
        "exposes": {case: list(ids) for case, ids in result.exposes.items()},
        "not_exposed": result.hidden,
        "defects": DEFECTS,
        "notes": result.notes,
        "command": result.command,
        "covers": result.covers,
        "diagnoses": [asdict(d) | {"sentences": d.sentences()} for d in result.diagnoses],
        "peers": result.peers,
        "layers": result.layers,
        "known": result.known,
        "columns": [f.name for f in fields(Finding)],
        "judgements": [_judgement(target, j, result.titles) for target, j in result.judgements],
    }
    return json.dumps(_plain(document), allow_nan=False)


def _judgement(target: str, judgement: Judgement, titles: dict[str, str]) -> dict[str, Any]:
    """One peer on one case; a finding is a row under the document's `columns`."""
    culprit = judgement.culprit
    plain = (
        *("peer", "case", "dtype", "error", "skipped", "known", "seconds", "logits", "unclear", "masks"),
        *("token", "repeated", "unsteady", "apart", "outside"),
    )
    return {
        "target": target,
        **{name: getattr(judgement, name) for name in plain},
        "title": titles.get(judgement.case, ""),
        "passed": judgement.passed,
        "deviates": judgement.deviates,
        "culprit": None if culprit is None else asdict(culprit),
        **{name: [astuple(f) for f in getattr(judgement, name)] for name in ("local", "cumulative", "exact")},
        "named": [asdict(signature) for signature in judgement.named],
        "further": [
            {"tap": f.finding.tap, "call": f.finding.call, "named": [asdict(s) for s in f.named], "apart": f.apart}
            for f in judgement.further
        ],
        "k": [asdict(limit) for limit in judgement.limits],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value
