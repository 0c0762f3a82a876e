"""Memory: what this machine has left, and what a model's weights take of it, whole or streamed."""

from __future__ import annotations

import os
from contextlib import suppress
from math import prod
from pathlib import Path

from t5g2ref.config import Config
from t5g2ref.on_demand import HELD, layer_of
from t5g2ref.params import shapes

SINGLE = 4  # bytes of a number in float32
BESIDE = 2 << 30  # libraries, a case's values and what is in between
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def available() -> int:
    """Bytes that a new process may take without swapping, a container's limit counted."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, used in zip(_LIMITS, _USED, strict=True):
        with suppress(OSError, ValueError):  # "max" is no number
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, free)


def whole(config: Config) -> int:
    """Bytes for a run with all weights in memory: ours in float32, and a peer's own."""
    return 2 * SINGLE * sum(map(prod, shapes(config).values())) + BESIDE


def streamed(config: Config) -> int:
    """Bytes for a run that streams: what is in no layer, twice and once in parts in float64, and a few layers."""
    layers: dict[str, int] = {}
    for name, shape in shapes(config).items():
        layers[layer_of(name)] = layers.get(layer_of(name), 0) + prod(shape)
    outside = layers.pop("", 0)
    return 2 * SINGLE * outside + (HELD + 2) * SINGLE * max(layers.values(), default=0) + BESIDE
