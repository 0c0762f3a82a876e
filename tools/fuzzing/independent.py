"""A second reading of safetensors, by the library of that name, against which ours is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

Array = np.ndarray[Any, Any]
CODES: dict[str, Any] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    **{f"{letter.upper()}{8 * n}": f"<{letter}{n}" for letter in "iu" for n in (1, 2, 4, 8)},
}


def arrays(path: Path) -> dict[str, Array] | None:
    """Name → array; None where the library refuses the file, or has a type that we have not."""
    try:
        found = safetensors.deserialize(path.read_bytes())
    except (safetensors.SafetensorError, OSError):
        return None
    out = {}
    for name, item in found:
        if item["dtype"] not in CODES:
            return None
        out[name] = np.frombuffer(bytes(item["data"]), CODES[item["dtype"]]).reshape(item["shape"])
    return out
