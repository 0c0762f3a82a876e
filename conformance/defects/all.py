"""Every fault in one list, by id; a file a component holds its own."""

from __future__ import annotations

from fnmatch import fnmatchcase

from conformance.defects import arithmetic, attention, cached, embedding, masks, norms, padding, positions, settings
from conformance.defects import outputs as heads
from conformance.defects import steps, vision, windows
from conformance.defects import uncatalogued as own
from conformance.defects.injection import Fault

_PARTS = (
    *(embedding, norms, positions, masks, windows, padding, attention, settings),
    *(cached, steps, vision, heads, arithmetic, own),
)

FAULTS: list[Fault] = sorted((fault for part in _PARTS for fault in part.FAULTS), key=lambda fault: fault.id)


def find(patterns: list[str]) -> list[Fault]:
    """The faults whose id or key matches any of the patterns, in any case; all when there is none."""
    chosen = [pattern.upper() for pattern in patterns]
    return [
        fault
        for fault in FAULTS
        if not chosen or any(fnmatchcase(name.upper(), p) for p in chosen for name in (fault.id, fault.key))
    ]
