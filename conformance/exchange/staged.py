"""Puts an export into its folder: written whole within that folder first, then renamed into place, its manifest last.

What is being written lies inside the folder: so it is on the same disk, also where the folder is a mount point. Links
inside the folder are never followed: a file of somebody else behind one is neither deleted nor written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from t5g2ref.files import MARK, alone, opened, temporary

FORMAT = "t5g2ref-export"
MANIFEST = "manifest.json"
MAX_BYTES = 1 << 26
_OURS = re.compile(r"(inputs|expected-\d+)\.safetensors")
_CASE = re.compile(r"[a-z0-9-]+")


def others(folder: Path) -> list[str]:
    """What is in the folder, without what an export that is running, or was killed, has begun there."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(MARK)]


def manifest(folder: Path, name: str = MANIFEST, kind: str = FORMAT) -> dict[str, Any] | None:
    """The manifest of the export that is in the folder; None where there is none of that kind."""
    try:
        with opened(folder / name) as handle:
            raw = json.loads(handle.read(MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return raw if isinstance(raw, dict) and raw.get("format") == kind else None


@contextmanager
def writing(
    folder: Path, cases: Iterable[str], clear: Callable[[Path], None] | None = None, last: str = MANIFEST
) -> Iterator[Path]:
    """A folder inside `folder`, whose files are moved up at the end of the block; after an error nothing is.

    UsageError where another process is writing there, and for a link or a file in the way of a case.

    Args:
        clear: removes what an earlier one has left; None for an earlier export.
        last: the file that is moved last: where it is, all is.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with alone(folder), _inside(folder) as staging:
            _check(folder, cases)
            yield staging
            _check_room(staging, folder)
            (clear or _clear)(folder)
            _move(staging, folder, last)
    except BlockingIOError as error:
        raise UsageError(f"{folder}: {error.strerror}; wait for it, or name another") from error
    except BaseException:
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise


@contextmanager
def _inside(folder: Path) -> Iterator[Path]:
    """An empty folder inside; gone after the block, and with it what a killed export left."""
    for old in folder.glob(f"{MARK}*/"):
        shutil.rmtree(old, ignore_errors=True)
    staging = temporary(folder)
    try:
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check(folder: Path, cases: Iterable[str]) -> None:
    """UsageError for what would have to be followed or replaced."""
    for path in (folder / case for case in cases):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise UsageError(f"{path}: this is a link or a file, expected a folder; remove it, or name another folder")


def _check_room(staging: Path, folder: Path) -> None:
    """UsageError for a folder where a file is to be: before anything earlier is cleared away."""
    for path in (folder / name for name in _files(staging)):
        if path.is_dir() and not path.is_symlink():
            raise UsageError(f"{path}: this is a folder, expected a file; remove it, or name another folder")


def _clear(folder: Path) -> None:
    """An earlier export's files go, its manifest first. Other files stay, and all that lies behind a link."""
    earlier = manifest(folder)
    if earlier is None:
        return
    (folder / MANIFEST).unlink()
    cases = earlier.get("cases")
    for name in filter(_CASE.fullmatch, cases if isinstance(cases, dict) else {}):
        home = folder / name
        if home.is_symlink() or not home.is_dir():
            continue
        ours = [p for p in home.glob("*.safetensors") if _OURS.fullmatch(p.name)]
        for path in [p for p in ours if p.is_symlink() or not p.is_dir()]:
            path.unlink()
        if not any(home.iterdir()):
            home.rmdir()


def _move(staging: Path, folder: Path, last: str) -> None:
    for path in sorted(_files(staging), key=lambda p: p.name == last):
        (folder / path).parent.mkdir(exist_ok=True)
        os.replace(staging / path, folder / path)


def _files(staging: Path) -> list[Path]:
    """Every file in it, by its path from there, in order."""
    return sorted(p.relative_to(staging) for p in staging.rglob("*") if p.is_file())
