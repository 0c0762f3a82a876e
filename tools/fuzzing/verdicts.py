"""Whether a spoilt dump may be called CONFORMS: it is read in a simple way of our own, and held against the sound one.

Only what is certain is demanded. A tap that no dump has to show may go. A row that moved by less than `MATTERS` may be
taken for rounding, and where layouts were declared anew nothing is said of shapes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases.plan import minimum
from fuzzing import independent, recorded

Array = np.ndarray[Any, Any]
Calls = dict[tuple[str, int], dict[str, Array]]
MATTERS = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}  # of a row's length: far above rounding


def shown(folder: Path) -> tuple[dict[str, Any], Calls] | None:
    """The manifest, and (case, call) → tap → array; None where this simple reading does not get there."""
    try:
        raw = json.loads((folder / recorded.MANIFEST).read_bytes())
        out: Calls = {}
        for case, calls in raw["cases"].items():
            for number, call in enumerate(calls):
                tensors = independent.arrays(folder / call["file"])
                taps = call.get("taps")
                named = {n: n for n in tensors or {}} if taps is None else taps if isinstance(taps, dict) else None
                names = {n: n for n in taps} if named is None else named
                out[case, number] = {tap: (tensors or {})[tensor] for tap, tensor in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return raw, out


def wrong(folder: Path, base: Path) -> str:
    """Why the dump may not pass; "" where it may, or nothing is certain."""
    found, sound = shown(folder), shown(base)
    assert sound is not None
    if found is None:
        return ""
    on = recorded.target()
    for (case, call), taps in sound[1].items():
        have = found[1].get((case, call))
        if have is None:
            return f"call {call} of case {case} is gone"
        least = minimum(on.config, recorded.case_of(on, case))[call]
        if gone := [name for name in least if name not in have]:
            return f"call {call} of case {case} lacks {gone[0]}"
        type_ = max((str(raw["peer"]["dtype"]) for raw in (found[0], sound[0])), key=MATTERS.__getitem__)
        declared = found[0].get("layouts") != sound[0].get("layouts")
        for name in taps.keys() & have.keys():
            if why := _differs(taps[name], have[name], MATTERS[type_], declared):
                return f"call {call} of case {case}: {name} {why}"
    return ""


def _differs(sound: Array, found: Array, matters: float, declared: bool) -> str:
    if sound.shape != found.shape:
        return "" if declared else f"has shape {found.shape}, expected {sound.shape}"
    if sound.dtype.kind in "iub" or not sound.ndim:
        return "" if (sound == found).all() or sound.dtype.kind not in "iub" else "differs"
    a, b = sound.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(b[np.isfinite(a)]).all():
        return "is not finite"
    length = np.linalg.norm(a, axis=-1)
    with np.errstate(all="ignore"):
        moved = np.linalg.norm(a - b, axis=-1)
    if (far := moved > matters * length + 1e-30).any():
        return f"has {int(far.sum())} rows that moved by up to {float((moved[far] / length[far]).max()):.3g}"
    return ""
