"""Defects that an unnamed culprit may be: those that its figures do not exclude, three at most."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from conformance.defects.catalogue import DEFECTS, first_seen_at

MOST = 3
NONE = "no defect of the catalogue: each that can show here first was tried, and its pattern does not fit"


def candidates(tap: str, exposed: Collection[str], tried: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each defect, and one for how many more there are.

    Args:
        tap: the culprit's.
        exposed: ids of the defects that the case exposes.
        tried: (id, verdict) of each defect whose pattern was looked for; "absent" excludes it.
    """
    known = first_seen_at(tap, exposed)
    absent = {defect for defect, verdict in tried if verdict == "absent"}
    left = [defect for defect in known if defect not in absent]
    if known and not left:
        return [NONE]
    lines = [f"{defect} {DEFECTS[defect]}" for defect in left[:MOST]]
    return lines + [f"or one of {len(left) - MOST} more: see `list faults`"] * (len(left) > MOST)
