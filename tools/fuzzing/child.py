"""What a process does before it reads: it stands apart, and notes what it holds while idle. Linux shows the rest."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from contextlib import suppress
from pathlib import Path


def apart(folder: Path) -> None:
    """An empty folder to be in, and streams that go to a file beside it."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    said = os.open(f"{folder}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((0, nothing), (1, said), (2, said)):
        os.dup2(target, number)


def idle(net: int) -> int:
    """Bytes in use before the reading; from here on the most is counted, and more than the net is refused."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what making the input freed must not be there for the reader
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    taken = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (taken + net, taken + net))
    return peak()


def peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    """A field of the process's own state, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
