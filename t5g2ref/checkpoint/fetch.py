"""Downloads one file into a cache: what broke off goes on, and no file has its name before its hash is right.

huggingface_hub throws away what a broken download had, and takes a file of the right size without looking at it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from t5g2ref.checkpoint.refusal import AGAIN, NoDownload
from t5g2ref.files import locked

Progress = Callable[[str, int, int], None]
PIECE = 1 << 20  # bytes that are written, or hashed, at a time
TRIES = 5  # connections in a row that bring nothing
SECONDS = 10  # without a byte; then a connection is broken
PARTIAL = ".t5g2ref-partial"


@dataclass(frozen=True)
class Remote:
    """A file on the Hub. `digest` is SHA-256 of what lies in large-file storage, and git's SHA-1 of the others."""

    name: str
    url: str
    size: int
    digest: str


def fetch(remote: Remote, blobs: Path, locks: Path, progress: Progress) -> Path:
    """The file in `blobs`, under its digest. NoDownload where it does not come whole; its beginning is kept."""
    whole = blobs / remote.digest
    with _alone(locks / f"{remote.digest}.lock", remote):
        if whole.is_file() and not _wrong(whole, remote):
            return whole
        partial = blobs / f"{remote.digest}{PARTIAL}"
        with partial.open("ab") as handle:
            _fill(handle, remote, progress)
        if (why := _wrong(partial, remote)) != "":
            partial.unlink()
            raise NoDownload(f"{remote.name} {why}; it was removed", AGAIN, "look at what is between here and the Hub")
        os.replace(partial, whole)
    return whole


def begun(remote: Remote, blobs: Path) -> int:
    """Bytes of the file that are here already."""
    there = (path for path in (blobs / remote.digest, blobs / f"{remote.digest}{PARTIAL}") if path.is_file())
    return min(remote.size, max((path.stat().st_size for path in there), default=0))


@contextmanager
def _alone(path: Path, remote: Remote) -> Iterator[None]:
    """One process writes at a time; huggingface_hub asks for the same lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as handle:
        if not locked(handle):
            raise NoDownload(f"another process is downloading {remote.name}", "wait for it")
        yield


def _fill(handle: BinaryIO, remote: Remote, progress: Progress) -> None:
    """Append what is missing. A connection that breaks is followed by another, unless TRIES of them brought nothing."""
    from huggingface_hub.errors import HTTPError  # of the HTTP library, whichever this release has

    failed, said, told = 0, "the connection ended", handle.tell()
    while (at := handle.tell()) < remote.size:
        if failed > TRIES:
            raise NoDownload(f"{remote.name} broke off at byte {at:,} of {remote.size:,}: {said}", AGAIN)
        time.sleep(min(failed, 1))
        try:
            for piece in _pieces(handle, remote.url, at):
                handle.write(piece)
                handle.flush()  # for whoever kills us
                if handle.tell() > remote.size:  # no more is listed: it is wrong, however much would come
                    return
                if (done := handle.tell()) >= min(remote.size, told + PIECE):
                    progress(remote.name, min(done, remote.size), remote.size)
                    told = done
        except HTTPError as error:
            if _final(error):
                raise
            said = f"{type(error).__name__}: {error}".splitlines()[0]
        failed = failed + 1 if handle.tell() <= at else 0


def _pieces(handle: BinaryIO, url: str, at: int) -> Iterator[bytes]:
    """The bytes of the file from `at`; from its beginning, for a server that knows no ranges."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={at}-"} if at else {})
    # A redirect to another host gets no token: the session's library sees to it.
    with get_session().stream("GET", url, headers=headers, timeout=SECONDS, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if at and response.status_code != 206:
            handle.truncate(0)
            handle.seek(0)
        # In the sizes that they come in: what did not fill one of ours would be lost with the connection.
        yield from response.iter_bytes()


def _final(error: Any) -> bool:
    """An answer that will be the same the next time."""
    status = getattr(getattr(error, "response", None), "status_code", 500)
    return status < 500 and status not in (408, 429)


def _wrong(path: Path, remote: Remote) -> str:
    """What tells the file from the one that was asked for; "" for the same."""
    if (size := path.stat().st_size) != remote.size:
        return f"has {size:,} bytes, expected {remote.size:,}"
    git = len(remote.digest) == 40
    hashed = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(PIECE):
            hashed.update(piece)
    kind, found = "git's SHA-1" if git else "SHA-256", hashed.hexdigest()
    return "" if found == remote.digest else f"has {kind} {found[:12]}…, expected {remote.digest[:12]}…"
