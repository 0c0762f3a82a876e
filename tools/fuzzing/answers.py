"""The class `process`: what a program says on its standard output, and the files that it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from conformance.activations import Dump
from conformance.errors import PeerUnavailable
from conformance.exchange.channel import ProcessError
from conformance.exchange.reading import DumpError
from conformance.peers.guard import PeerError
from conformance.peers.process import create
from conformance.peers.protocol import Skip, shows
from fuzzing import dumps, headers, raw, recorded, tree
from fuzzing.tries import Kind
from t5g2ref import taps

HELLO = {"name": "port", "dtype": "float32", "versions": {"port": "2.0"}, "taps": ["*"], "layouts": {}, "stored": {}}
DONE = {"done": ["0.safetensors"]}
SECONDS = 1.0  # for an answer
PROGRAM = """\
read -r asked
cat greeting
read -r asked
out=$(printf %s "$asked" | sed 's/.*"out": "\\([^"]*\\)".*/\\1/')
cp files/* "$out"/
cat answer
read -r asked
"""
ENDS = ("exit 0", "exit 7", "kill -9 $$", "sleep 2", "exec 1>&-; read -r asked", "echo unasked", "cat greeting >&2")
LINES = (
    b"",
    b"\n",
    b"\n\n",
    b"{}",
    b"null\n",
    b"[]\n",
    b'{"skip": "x"}\n',
    b'{"error": "\\u001b[2J"}\n',
    b"\xff\xfe\n",
)


def base(folder: Path) -> None:
    recorded.write(folder, ("short",))


def spoil(rng: Random, base: Path, folder: Path) -> None:
    (folder / "files").mkdir()
    shutil.copyfile(base / "short" / "0.safetensors", path := folder / "files" / "0.safetensors")
    spoilt, program = rng.choice(("greeting", "greeting", "answer", "files", "program")), PROGRAM.splitlines()
    for name, said in (("greeting", HELLO), ("answer", DONE)):
        data = json.dumps(said).encode()
        data = _said(rng, data) if name == spoilt else data
        (folder / name).write_bytes(data if rng.random() < 0.03 else data + b"\n")
    if spoilt == "files":
        path.write_bytes(headers.spoilt(rng, path.read_bytes()))
        if rng.random() < 0.3:
            path.rename(folder / "files" / "1.safetensors")
    if spoilt == "program":
        program[rng.randrange(len(program))] = rng.choice(ENDS)
    (folder / "program").write_text("\n".join(program))


def _said(rng: Random, data: bytes) -> bytes:
    """Another answer: its structure, its bytes, what its fields mean, or another line."""
    how, root = rng.random(), tree.parsed(data)
    if how < 0.15:
        return rng.choice(LINES)
    if how < 0.3:
        name = rng.choice(("taps", "taps", "taps", "layouts", "stored", "done", "skip", "error", "link"))
        many = [rng.choice(dumps.TAPS) + str(n) for n in range(rng.choice((0, 1, 600, 20_000)))]
        value: Any = rng.choice((many, many, [[]], dict.fromkeys(many, rng.choice(dumps.LAYOUTS))))
        root.append([name, tree.Raw(json.dumps(value))])
    elif how < 0.8:
        tree.spoil(rng, root)
    said = tree.text(root).encode()
    return raw.spoilt(rng, said) if how > 0.7 else said


def read(folder: Path, base: Path) -> int:
    """The greeting, then one case; then what the judge asks of a peer."""
    on = recorded.target()
    peer = create("process:sh program", SECONDS)
    try:
        peer.open(on)
        shown = shows(peer)
        seen = [tap.name for tap in taps.table(on.config) if shown(tap.name)]
        with Dump() as dump:
            peer.run(recorded.case_of(on, "short"), dump)
        return len(seen)
    finally:
        peer.close()


ERRORS = (PeerUnavailable, ProcessError, DumpError, PeerError, Skip)
KIND = Kind("process", 1, base, spoil, read, ERRORS)
