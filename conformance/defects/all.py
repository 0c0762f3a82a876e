"""Every fault in one list, by id. There is a file for each component of the model."""

from __future__ import annotations

from fnmatch import fnmatchcase

from conformance.defects import arithmetic, attention, cached, embedding, generating, masks, norms, padding, positions
from conformance.defects import outputs as heads
from conformance.defects import pictures as files
from conformance.defects import settings as shared
from conformance.defects import steps as calls
from conformance.defects import uncatalogued as own
from conformance.defects import vision as pictures
from conformance.defects import windows as layers
from conformance.defects.injection import Fault
from conformance.defects.near import NEAR as NEAR

_PARTS = (
    *(embedding, norms, positions, masks, layers, padding, attention, shared),
    *(cached, calls, pictures, files, heads, arithmetic, generating, own),
)

FAULTS: list[Fault] = sorted((fault for part in _PARTS for fault in part.FAULTS), key=lambda fault: fault.id)


def find(patterns: list[str]) -> list[Fault]:
    """The faults whose id or key matches any of the patterns, in any case; all when there is none."""
    chosen = [pattern.upper() for pattern in patterns]
    return [
        fault
        for fault in (*FAULTS, *NEAR)
        if not chosen or any(fnmatchcase(name.upper(), p) for p in chosen for name in (fault.id, fault.key))
    ]
