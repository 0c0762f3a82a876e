"""Which checkpoint a name on the command line means."""

from __future__ import annotations

from pathlib import Path

import t5g2ref
from t5g2ref.config import PRESETS

TRAINED = "demo"  # the one that has a tokenizer, and answers that mean something
BUNDLED = (TRAINED, "tiny", "tiny-even", "tiny-released", "tiny-encoder")


def folder(name: str) -> Path:
    """The folder of a bundled checkpoint, or the one that is named. ValueError for a geometry, which has no weights."""
    if name in PRESETS and not Path(name).exists():
        there = f"the folder of a checkpoint, or {', '.join(BUNDLED)}"
        raise ValueError(f"{name} is a geometry without weights; give {there}")
    return t5g2ref.bundled(name) if name in BUNDLED else Path(name)
