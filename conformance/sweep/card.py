"""Several judges on one CUDA device: what memory each takes, and NVIDIA's MPS, by which their kernels run side by side.

A judge launches many small kernels and fills a card for a part of the time. Two without MPS take turns at it, and wait
for each other at every tap.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

from conformance.arrays import free_bytes, has_device
from conformance.checkpoints import GIB, SINGLE, bytes_of_layers, numbers_in_no_layer
from conformance.errors import UsageError
from conformance.sweep.pool import deaf
from conformance.sweep.room import LIBRARIES, NARROW
from conformance.target import Target
from t5g2ref.backend import Backend
from t5g2ref.dtypes import HALF
from t5g2ref.params import shapes

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
USUAL = Path("/tmp/nvidia-mps/control")  # where a daemon that others have started listens
SHORT = Path("/tmp")  # a folder for ours: a socket's path may have some 100 letters
PATIENCE = 30.0  # seconds for the daemon to start, and to end

OF_A_WEIGHT = SINGLE + NARROW + NARROW  # bytes of ours in float32, rounded to a half type, and of a peer's own
SLOW = f"several judges share a card without MPS ({CONTROL}): they wait for each other at every tap"
"""A note of a run."""


def left_beside(targets: Sequence[Target], judges: int, borrowing: Collection[str] = ()) -> int:
    """Bytes of the device that are left beside so many judges, and beside what this process holds.

    `borrowing` are the types of the peers where the judges share this process's weights: what is left is for their
    comparisons and for the peers' own weights, of which there is one set or more. None where each judge has its own
    weights: these and a peer's are not in what is left.

    UsageError where not even these fit.
    """
    backend = targets[0].backend
    free, weights = free_bytes(backend), sum(bytes_of_weights(target, borrowing) for target in targets)
    each, beside = (LIBRARIES, weights) if borrowing else (LIBRARIES + weights, 0)
    if judges * each + beside > free:
        found = f"{backend.name} has {free / GIB:.1f} GiB free for judges of {(each + beside) / GIB:.1f} GiB"
        fits = max(0, free - beside) // each
        remedy = f"give --jobs {fits}" if fits else "leave --jobs out, and judge in one process"
        raise UsageError(f"--jobs {judges}: {found}; {remedy}")
    return free - judges * each


def bytes_of_weights(target: Target, borrowing: Collection[str] = ()) -> int:
    """What a process takes of the device for a checkpoint: of streamed weights, those that are in no layer and a few
    layers; of borrowed ones, a peer's own."""
    if target.streamed:
        return OF_A_WEIGHT * numbers_in_no_layer(target.config) + bytes_of_layers(target.config)
    each = max((NARROW if dtype in HALF else SINGLE for dtype in borrowing), default=OF_A_WEIGHT)
    return each * sum(map(prod, shapes(target.config).values()))


@contextmanager
def side_by_side(backend: Backend) -> Iterator[str]:
    """Inside it, processes that are started share the device by MPS; gives SLOW where they do not, else "".

    One that runs already is used. Ours has a folder and an end of its own.
    """
    if not has_device(backend) or os.environ.get(PIPES) or USUAL.exists():
        yield ""
        return
    if shutil.which(CONTROL) is None or not os.access(SHORT, os.W_OK):
        yield SLOW
        return
    with tempfile.TemporaryDirectory(prefix="mps-", dir=SHORT, ignore_cleanup_errors=True) as folder:
        ours, before = {PIPES: folder, LOGS: folder}, {name: os.environ.get(name) for name in (PIPES, LOGS)}
        try:
            with deaf():  # or Ctrl-C, which may come at any time, could leave it running
                started = _told(ours, ["-d"])
            os.environ |= ours if started else {}
            yield "" if started else SLOW
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ |= {} if value is None else {name: value}
            with deaf():
                _told(ours, [], "quit\n")  # also one that did not start in time


def _told(ours: dict[str, str], options: Sequence[str], words: str = "") -> bool:
    """Whether the daemon's control took it.

    The daemon sees every card: it would number those of CUDA_VISIBLE_DEVICES anew, and its clients would look for their
    old numbers.
    """
    seen = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [CONTROL, *options],
            check=False,
            input=words,
            text=True,
            env=seen | ours,
            timeout=PATIENCE,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return done.returncode == 0
    return False
