"""Memory that NumPy has freed stays with the process, where the C library is glibc.

Arrays of a comparison are tens of megabytes, made and freed at every tap. By default each is fetched from the system
and cleared anew, which took a seventh of a judge's time on two cores.
"""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # parameters of mallopt, by their numbers in malloc.h
KEPT = (1 << 31) - 1  # bytes at the heap's end that are not given back: the largest number it takes
SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep() -> bool:
    """Let this process keep what it frees, in one heap; whether it does. What a user has set stays."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - another library's mallopt may mean something else
        tell = library.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    if any(name in os.environ for name in SET_BY_USER):
        return False
    return all([tell(TRIM_THRESHOLD, KEPT), tell(MMAP_MAX, 0), tell(ARENA_MAX, 1)])
