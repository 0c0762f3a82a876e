"""Writes files whole or not at all, and reads only what is a file.

A new file is written beside its target and takes its name at the end. So a reader sees the earlier content or the new
one: also when the disk is full, when two write at once, and when a process is ended. A power cut is another matter:
nothing here is forced onto the disk.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

MARK = ".writing-"
"""How a temporary file or folder begins; it lies in the folder of its target, on the same disk."""
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a disk"}


def temporary(folder: Path) -> Path:
    """A path in the folder that nobody else has."""
    return folder / f"{MARK}{os.urandom(8).hex()}"


def in_the_way(path: Path) -> str:
    """What is at the path that no file can replace, as "a pipe"; "" where one can be written."""
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "")
    except FileNotFoundError:
        return ""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name at the end of the block; after an error nothing is left.

    A link is replaced and not followed. A character device (/dev/null) is given as it is: nothing can take its name.
    OSError for a folder, a pipe and the like.
    """
    if kind := in_the_way(path):
        raise OSError(errno.EINVAL, f"this is {kind}, expected a file", str(path))
    if path.is_char_device():
        yield path
        return
    made = temporary(path.parent)
    try:
        yield made
        if path.exists():
            shutil.copymode(path, made)
        os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """A file in UTF-8. What a link leads to is replaced, and the link stays."""
    if path.is_symlink() and not in_the_way(path):
        path = path.resolve()
    with replacing(path) as made:
        made.write_text(content, encoding="utf-8")


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The file, open to be read. OSError for what is none: a pipe would wait for its writer for ever."""
    handle = open(path, "rb", opener=_at_once)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        return handle
    handle.close()
    raise OSError(errno.EINVAL, "this is no file", str(path))


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """During the block nobody else who asks for this may write into the folder. The lock ends with the process.

    BlockingIOError where somebody does. Where there are no such locks, as on some network disks, nobody is kept out.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            why = "another process is writing into this folder"
            raise BlockingIOError(errno.EWOULDBLOCK, why, str(folder)) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def locked(handle: IO[Any]) -> bool:
    """Whether the file is now this process's own, among those that ask; it is until the handle is closed.

    Where there are no such locks, everyone has it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
