"""Peers in a file for runs that are cut in parts, and what two runs of the same have to agree on."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MANY = '''
"""A wrong mask, a defect in bfloat16, a black box that deviates, one that warns and raises, and one that generates."""

import warnings

from conformance.defects.all import FAULTS
from conformance.peers.reference import ReferencePeer
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.selftest.speaking_peer import SpeakingPeer


def fault(id): return next(f for f in FAULTS if f.id == id)
def window(_, backend): return FaultyPeer(fault("D31").inject, name="window")
def half(_, backend): return FaultyPeer(fault("D52").inject, dtype="bfloat16", name="half")
def speaking(_, backend): return SpeakingPeer(fault("D39"))


class Box(FaultyPeer):
    taps, called = ("logits",), "the box"


class Loud(ReferencePeer):
    def run(self, case, dump):
        warnings.warn(f"case {case.name} is slow")
        if case.name == "eoi":
            raise ValueError("no \\x1b[31m eoi")
        super().run(case, dump)

    def close(self): raise ValueError("open for ever")


def box(_, backend): return Box(fault("D46").inject, name="box")
def loud(_, backend): return Loud(backend, "float32")
'''

DYING = '''
"""It ends in `case` as often as the file beside it has room: killed, or stopped from the keyboard."""

import os
import signal
from pathlib import Path

from conformance.peers.reference import ReferencePeer

HERE = Path(__file__).parent


class Dying(ReferencePeer):
    def run(self, case, dump):
        left = HERE / "left"
        if case.name == "eoi" and left.exists() and (count := int(left.read_text())):
            left.write_text(str(count - 1))
            if (HERE / "softly").exists():
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGKILL)
        super().run(case, dump)


def create(_, backend): return Dying(backend, "float32")
'''

OWN = ("seconds", "peak_bytes", "command")  # of a run, and not of its verdict


def command(*arguments: str | Path) -> tuple[int, str, str]:
    """The command in this process: its exit status, stdout and stderr. The bits of a product follow from its threads,
    so it has one, as a worker has."""
    from threadpoolctl import threadpool_limits

    from conformance import __main__ as suite

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), threadpool_limits(1):
        status = suite.main([*map(str, arguments), "--no-progress"])
    return status, out.getvalue(), err.getvalue()


def verdict(path: Path) -> Any:
    """A report without what no two runs have alike."""
    return _bare(json.loads(path.read_text()))


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _bare(item) for name, item in value.items() if name not in OWN}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def told(out: str) -> Sequence[str]:
    """What a terminal shows, without the line of times."""
    return [line for line in out.splitlines() if " peak memory " not in line]
