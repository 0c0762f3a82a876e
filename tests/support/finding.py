"""Checkpoints found as a user finds them: a command in a process of its own, a Hub on this machine, an empty cache."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from processes import python
from small_hub import REPO, Hub

FIRST = "model-00001-of-00003.safetensors"
WHOLE = "231 tensors in bfloat16, all in place"
Ended = subprocess.CompletedProcess[str]
Describe = Callable[..., Ended]


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """That of a process which knows this hub and this cache, and nothing of the machine's own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("T5G2REF_", "HF_", "HUGGING"))}
    return kept | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | more


def describing(hub: Hub, home: Path) -> Describe:
    """`describe NAME` with environment variables."""

    def run(name: str = REPO, **more: str) -> Ended:
        done = python("-W", "error", "-m", "t5g2ref", "describe", name, env=environment(hub, home, **more))
        assert "Traceback" not in done.stderr
        return done

    return run


def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub" / "models--somebody--some-model"


def blobs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (cache(tmp_path) / "blobs").iterdir())


def refused(done: Ended, *words: str) -> None:
    """It ended with status 2, and says all of this on standard error."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    for part in words:
        assert part in done.stderr
