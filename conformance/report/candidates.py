"""What a fault may be where nothing named it: the defects that its figures do not exclude, three at most."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from conformance.defects.catalogue import DEFECTS, first_seen_at

MOST = 3
NONE = "nothing that the catalogue knows: every defect that shows here first was tried, and has another pattern"


def candidates(tap: str, exposed: Collection[str], tried: Iterable[tuple[str, str]]) -> list[str]:
    """Lines for a person, one a defect.

    Args:
        tap: of the first failing finding.
        exposed: ids that the case can show.
        tried: (id, verdict) of each defect whose pattern was looked for; one that is "absent" is excluded.
    """
    known = first_seen_at(tap, exposed)
    absent = {defect for defect, verdict in tried if verdict == "absent"}
    left = [defect for defect in known if defect not in absent]
    if known and not left:
        return [NONE]
    lines = [f"{defect} {DEFECTS[defect]}" for defect in left[:MOST]]
    return lines + [f"or one of {len(left) - MOST} more: see `list faults`"] * (len(left) > MOST)
