"""Faults that resemble a catalogued defect and are not it: none may be called by its name."""

from __future__ import annotations

from conformance.defects.near import activation, attention, norms, tables

NEAR = [fault for part in (norms, attention, activation, tables) for fault in part.FAULTS]
