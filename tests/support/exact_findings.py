"""Findings of the exact lane, and ids for it."""

from __future__ import annotations

import numpy as np

from conformance.measure.finding import Finding

ENC, DEC = "encoder.text_model", "decoder"


def failed(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.tap, f.status) for f in findings if not f.passed]


IDS = np.array([[33, 5, 301, 7], [31, 31, 301, 310]])
