"""Several judges on one CUDA device: what memory each takes, and NVIDIA's MPS, by which their kernels run side by side.

A judge launches many small kernels and fills a card for a part of the time. Two without MPS take turns at it, and wait
for each other at every tap.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

from conformance.arrays import free_bytes, has_device
from conformance.checkpoints import GIB
from conformance.errors import UsageError
from conformance.sweep.pool import deaf
from conformance.sweep.room import LIBRARIES
from conformance.target import Target
from t5g2ref.backend import Backend
from t5g2ref.params import shapes

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
USUAL = Path("/tmp/nvidia-mps/control")  # where a daemon that others have started listens
PATIENCE = 30.0  # seconds for the daemon to start, and to end

OF_A_WEIGHT = 4 + 2 + 2  # bytes of ours in float32, rounded to a half type, and of a peer's own
SLOW = f"several judges share a card without MPS ({CONTROL}): they wait for each other at every tap"
"""A note of a run."""


def room(targets: Sequence[Target], judges: int) -> int:
    """Bytes of the device that are left for comparisons beside so many judges, each with weights of its own.

    UsageError where not even these fit.
    """
    free, each = free_bytes(targets[0].backend), max(map(bytes_of_judge, targets))
    if judges * each > free:
        fits, found = max(1, free // each), f"{free / GIB:.1f} GiB free for judges of {each / GIB:.1f} GiB"
        raise UsageError(f"--jobs {judges}: {targets[0].backend.name} has {found}; give --jobs {fits}")
    return free - judges * each


def bytes_of_judge(target: Target) -> int:
    """What a process takes of the device before its first comparison."""
    return OF_A_WEIGHT * sum(map(prod, shapes(target.config).values())) + LIBRARIES


@contextmanager
def side_by_side(backend: Backend) -> Iterator[str]:
    """Inside it, processes that are started share the device by MPS; gives SLOW where they do not, else "".

    One that runs already is used. Ours has a folder and an end of its own.
    """
    if not has_device(backend) or PIPES in os.environ or USUAL.exists():
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/tmp") as folder:  # a socket's path has to be short
        ours, started = {PIPES: folder, LOGS: folder}, False
        try:
            with deaf():  # or Ctrl-C, which may come at any time, could leave it running
                started = _told(ours, ["-d"])
            if started:
                os.environ |= ours
            yield "" if started else SLOW
        finally:
            if started:
                for name in ours:
                    os.environ.pop(name, None)
                with deaf():
                    _told(ours, [], "quit\n")


def _told(ours: dict[str, str], options: Sequence[str], words: str = "") -> bool:
    """Whether the daemon's control took it."""
    program = shutil.which(CONTROL)
    if program is None:
        return False
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [program, *options],
            check=False,
            input=words,
            text=True,
            env=os.environ | ours,
            timeout=PATIENCE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return done.returncode == 0
    return False
