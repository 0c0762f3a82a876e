"""Faults that are not in the catalogue: a judge that knew the list alone would be none."""

from __future__ import annotations

from conformance.defects.uncatalogued import attention, elements, lengths, pictures, rows, runs, stream, weights
from conformance.defects.uncatalogued import outputs as heads

FAULTS = [
    fault
    for part in (weights, stream, attention, pictures, heads, elements, lengths, runs, rows)
    for fault in part.FAULTS
]
