"""The channel to a process: nothing is left running, and no question hangs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from processes import python

from conformance.exchange import channel
from conformance.exchange.channel import Channel, ProcessError


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def parent(tmp_path: Path, body: str) -> list[str]:
    """A program with a child that ignores requests to end; both numbers are in `tmp_path / "pids"`."""
    path = tmp_path / "parent.py"
    path.write_text(
        "import os, signal, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); "
        "print(1, flush=True); time.sleep(300)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n{body}\n"
    )
    return [sys.executable, str(path)]


def gone(tmp_path: Path) -> bool:
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.parametrize("body", ["time.sleep(300)", "sys.stdin.readline(); os._exit(0)"])
def test_the_whole_group_is_ended(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "GRACE", 0.2)
    process = Channel(parent(tmp_path, body))
    with pytest.raises(ProcessError, match=r"no answer within 2 s|closed its standard output|2 s") as raised:
        process.ask({"hello": 1}, 2)
    assert "asked to 'hello'" in str(raised.value)
    assert not process.running
    assert gone(tmp_path)


def test_an_interruption_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "GRACE", 0.2)
    process = Channel(parent(tmp_path, "sys.stdin.readline(); print('{}', flush=True); time.sleep(300)"))
    assert process.ask({"hello": 1}, 20) == {}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Channel, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process.ask({"again": 1}, 20)
    assert gone(tmp_path)


def test_the_end_of_python_ends_it(tmp_path: Path) -> None:
    argv = parent(tmp_path, "sys.stdin.readline(); print('{}', flush=True); time.sleep(300)")
    program = (
        f"from conformance.exchange.channel import Channel\nc = Channel({argv!r})\nc.ask({{'hello': 1}}, 20)\n1 / 0"
    )
    python("-c", program)
    assert gone(tmp_path)


def test_a_question_that_nobody_reads_does_not_hang() -> None:
    process = Channel([sys.executable, "-c", "import time; time.sleep(300)"])
    began = time.monotonic()
    with pytest.raises(ProcessError, match=r"no answer within 0\.5 s"):
        process.ask({"long": "x" * 1_000_000}, 0.5)
    assert time.monotonic() - began < 5
