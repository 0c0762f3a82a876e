"""A server on this machine that speaks as much of the Hugging Face Hub as a download needs, and can misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "somebody/some-model"


@dataclass
class Hub:
    """What is served: `files` of one repository at one commit. The rest is how it misbehaves, and what it saw."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    refuse: tuple[int, str, str] | None = None  # status, X-Error-Code and X-Error-Message of every answer
    wrong: dict[str, bytes] = field(default_factory=dict)  # what is sent in place of a file
    cuts: dict[str, list[int]] = field(default_factory=dict)  # bytes that an answer sends before it breaks off
    stalls: dict[str, int] = field(default_factory=dict)  # bytes after which an answer waits for ever
    ranges: bool = True
    store: str = ""  # the endpoint that files of weights are to be had from
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    tokens: set[str] = field(default_factory=set)
    endpoint: str = ""

    def gets(self, name: str) -> list[str]:
        """The Range of each GET of a file."""
        return [said for method, path, said in self.asked if method == "GET" and path.endswith(f"/{name}")]

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git(data)}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
            siblings.append(entry)
        return {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


def git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.endpoint` for the length of the block."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: Hub

    def do_GET(self) -> None:
        hub, path = self.served, self.path.partition("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        hub.tokens.add(self.headers.get("Authorization", ""))
        if hub.refuse:
            self._refused(*hub.refuse)
        elif not path.startswith((f"/api/models/{REPO}", f"/{REPO}/resolve/")):
            self._refused(404, "RepoNotFound", "Repository not found")
        elif path.startswith("/api/"):
            self._listed(path.removeprefix(f"/api/models/{REPO}").removeprefix("/revision/") or "main")
        else:
            self._file(*path.removeprefix(f"/{REPO}/resolve/").split("/", 1))

    do_HEAD = do_GET

    def _refused(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _listed(self, revision: str) -> None:
        if revision not in self.served.revisions:
            self._refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        data = json.dumps(self.served.listing()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, revision: str, name: str) -> None:
        hub = self.served
        if revision not in hub.revisions or name not in hub.files:
            self._refused(404, "EntryNotFound", "Entry not found")
            return
        if hub.store and name.endswith(".safetensors"):
            self.send_response(302)
            self.send_header("Location", f"{hub.store}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, said = hub.wrong.get(name, hub.files[name]), self.headers.get("Range")
        begin = int(said.removeprefix("bytes=").removesuffix("-")) if said and hub.ranges else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{git(hub.files[name])}"')
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if self.command == "GET":
            self._send(name, data[begin:])

    def _send(self, name: str, data: bytes) -> None:
        hub = self.served
        if hub.cuts.get(name):
            data = data[: hub.cuts[name].pop(0)]
            self.close_connection = True
        if name in hub.stalls:
            self.wfile.write(data[: hub.stalls[name]])
            self.wfile.flush()
            while name in hub.stalls:
                time.sleep(0.02)
            self.close_connection = True
            return
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass
