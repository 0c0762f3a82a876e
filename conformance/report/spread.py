"""How a mistake is spread over the layers of a stack, and whether it begins at the cache. In words, for a report."""

from __future__ import annotations

import re
from collections.abc import Iterable

Row = tuple[str, int, str]
"""Of a finding under the local anchor: tap, call, status."""

PUT_IN = {"keys": "k_rope", "values": "v_proj", "cross_keys": "cross_k_norm", "cross_values": "cross_v_proj"}
"""What comes out of the cache: what is put into it, by the last part of a tap's name."""

_LAYER = re.compile(r"(.+)\.layers\.(\d+)(?:\.(.+))?")


def layers(culprit: str, found: Iterable[Row]) -> str:
    """In which layers of the culprit's stack taps fail, and whether at the same tap; "" where it is one layer or none.

    A tap that is missing is no mistake of its layer. Where every layer fails, it is in shared code and in no layer.
    """
    at = _LAYER.fullmatch(culprit)
    if at is None:
        return ""
    every, failing = set[int](), dict[int, set[str]]()
    for tap, _, status in found:
        place = _LAYER.fullmatch(tap)
        if place is not None and place[1] == at[1]:
            every.add(int(place[2]))
            if status not in ("pass", "missing"):
                failing.setdefault(int(place[2]), set()).add(place[3] or "")
    if len(failing) < 2:
        return ""
    where = "at the same tap" if set.intersection(*failing.values()) else "at different taps"
    told = f"in {len(failing)} of {len(every)} layers, {where}"
    return f"{told}: systematic, so look at what they share" if len(failing) == len(every) else told


def cache(culprit: str, call: int, found: Iterable[Row]) -> str:
    """That the cache is in question, where the culprit is what came out of it and what was put in is right; else "".

    Keys that show as turned may have been taken from behind the cache: then queries are right, and earlier keys too.
    """
    before, _, last = culprit.rpartition(".")
    if last == "k_rope" and call > 0:
        earlier = [row for row in found if row[0] == f"{before}.q_rope" or (row[0] == culprit and row[1] < call)]
        right = _right(row for row in earlier if row[1] <= call)
        return "the cache, if k_rope was taken from behind it: q_rope, turned by the same tables, is right" * right
    if (source := PUT_IN.get(last)) is None:
        return ""
    right = _right(row for row in found if row[0] == f"{before}.{source}" and row[1] <= call)
    return f"the cache, or what is joined to it: {source}, which goes in, is right" * right


def _right(rows: Iterable[Row]) -> bool:
    """Whether there are any, and all of them pass."""
    states = [status for _, _, status in rows]
    return bool(states) and all(status == "pass" for status in states)
