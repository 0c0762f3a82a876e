"""How long an edit-and-run loop waits: `python -m conformance --quick`, from its start to its verdict."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np

from benchmark.timing import Work

COMMAND = (sys.executable, "-m", "conformance", "--quick", "--no-progress")
CONFORMS = 0


def work() -> Work:
    """One run in a process of its own. Its number is 0 where the verdict was CONFORMS, else NaN."""
    return Work(lambda _: _status(), _number)


def _status() -> int:
    return subprocess.run(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode


def _number(status: int) -> np.ndarray[Any, Any]:
    return np.array(0.0 if status == CONFORMS else np.nan)
