"""Which checkpoint a name on the command line means."""

from __future__ import annotations

import sys
from pathlib import Path

import t5g2ref
from t5g2ref.checkpoint.find import SIZES, find

TRAINED = "demo"  # the one that has a tokenizer, and answers that mean something
BUNDLED = (TRAINED, "tiny", "tiny-even", "tiny-released", "tiny-encoder")
NAMES = f"a folder, a .safetensors file, {', '.join(BUNDLED)}, {', '.join(SIZES)} or OWNER/REPO[@REVISION]"


def place(name: str, *, beside: tuple[str, ...] = ()) -> Path:
    """The folder, or the file of weights, that is bundled or found: see `checkpoint.find`, also for what is raised."""
    if name in BUNDLED:
        return t5g2ref.bundled(name)
    return find(name, _told, names=", ".join(BUNDLED), beside=beside).place


def _told(file: str, done: int, total: int) -> None:
    """How far a download is, on standard error where that is a terminal; else a line at its end."""
    watched = sys.stderr.isatty()
    if watched or done == total:
        start, end = ("\r", "" if done < total else "\n") if watched else ("", "\n")
        print(f"{start}t5g2ref: {file}: {done:,} of {total:,} bytes", end=end, file=sys.stderr, flush=True)
