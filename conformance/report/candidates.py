"""Defects that an unnamed culprit may be: those that neither its figures nor the run exclude, three at most."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from conformance.defects.catalogue import DEFECTS, first_seen_at

MOST = 3
NONE = "no defect of the catalogue: each that can show here first was tried, and its pattern does not fit"
PLAIN = ("dtype", "shape", "missing")
"""Statuses that say what is wrong by themselves: the wrong type, too many or too few, nothing."""


def candidates(
    tap: str, status: str, exposed: Collection[str], tried: Iterable[tuple[str, str]], *, single: bool = False
) -> list[str]:
    """A line for each defect, and one for how many more there are.

    Args:
        tap, status: the culprit's.
        exposed: ids of the defects that the case exposes, and that this run could have seen.
        tried: (id, verdict) of each defect whose pattern was looked for; "absent" excludes it.
        single: in float32 "no power" excludes it too: a defect that changes nothing here is not the reason.
    """
    if status in PLAIN:
        return []
    known, excluding = first_seen_at(tap, exposed), ("absent", "akin", "no power" if single else "absent")
    absent = {defect for defect, verdict in tried if verdict in excluding}
    left = [defect for defect in known if defect not in absent]
    if known and not left:
        return [NONE]
    lines = [f"{defect} {DEFECTS[defect]}" for defect in left[:MOST]]
    return lines + [f"or one of {len(left) - MOST} more: see `list faults`"] * (len(left) > MOST)
