"""Downloads of a checkpoint that break off, lie, or find no network: nothing of them is later taken for whole."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finding import FIRST, WHOLE, Describe, blobs, cache, environment, refused
from processes import ROOT, python
from small_hub import COMMIT, REPO, Hub

# What is offline


def test_offline_with_nothing_in_the_cache(describe: Describe, hub: Hub) -> None:
    refused(describe(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set", f"hf download {REPO}", "unset HF_HUB_OFFLINE")
    assert hub.asked == []


def test_offline_with_a_shard_missing(describe: Describe, tmp_path: Path) -> None:
    """It is not taken for whole, and the next run with a network brings that shard alone."""
    assert describe().returncode == 0
    shard = cache(tmp_path) / "snapshots" / COMMIT / FIRST
    shard.resolve().unlink()
    shard.unlink()
    refused(describe(HF_HUB_OFFLINE="1"), f"the cache lacks {FIRST}; HF_HUB_OFFLINE is set")
    assert WHOLE in describe().stdout


def test_no_network(hub: Hub, tmp_path: Path) -> None:
    given = environment(hub, tmp_path / "home") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = python("-W", "error", "-m", "t5g2ref", "describe", REPO, env=given)
    refused(done, "http://127.0.0.1:9 cannot be reached: ConnectError", "look at the network")


# What breaks off


def test_a_cut_connection_is_taken_up(describe: Describe, hub: Hub) -> None:
    hub.cuts[FIRST] = [100_000, 50_000]
    assert WHOLE in describe().stdout
    assert hub.gets(FIRST) == ["", "bytes=100000-", "bytes=150000-"]


def test_a_server_that_knows_no_ranges(describe: Describe, hub: Hub) -> None:
    hub.cuts[FIRST], hub.ranges = [100_000, 50_000], False
    assert WHOLE in describe().stdout
    assert hub.gets(FIRST) == ["", "bytes=100000-", "bytes=50000-"]


def test_a_connection_that_stays_cut(describe: Describe, hub: Hub, tmp_path: Path) -> None:
    """The beginning is kept, and the next run goes on with it."""
    hub.cuts[FIRST] = [100_000, *[0] * 9]
    refused(
        describe(), f"{FIRST} broke off at byte 100,000 of {len(hub.files[FIRST]):,}", "it goes on where it stopped"
    )
    refused(describe(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")
    hub.cuts.clear()
    hub.asked.clear()
    assert WHOLE in describe().stdout
    assert hub.gets(FIRST) == ["bytes=100000-"]
    assert not [name for name in blobs(tmp_path) if "partial" in name]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_goes_on(number: signal.Signals, describe: Describe, hub: Hub, tmp_path: Path) -> None:
    hub.stalls[FIRST] = 200_000
    command = [sys.executable, "-m", "t5g2ref", "describe", REPO]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(hub, tmp_path / "home"), stderr=subprocess.PIPE
    ) as process:
        ended = time.monotonic() + 60
        while not any(path.stat().st_size == 200_000 for path in cache(tmp_path).glob("blobs/*partial")):
            assert time.monotonic() < ended
            time.sleep(0.02)
        other = describe()
        process.send_signal(number)
        said = process.communicate()[1].decode()
    assert said.endswith("t5g2ref: interrupted\n" if number == signal.SIGINT else " bytes\n")
    refused(other, f"another process is downloading {FIRST}")
    hub.stalls.clear()
    refused(describe(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")
    hub.asked.clear()
    assert WHOLE in describe().stdout
    assert hub.gets(FIRST) == ["bytes=200000-"]


CONVERT = """
import sys, time, t5g2ref
from pathlib import Path
from t5g2ref.checkpoint.folder import Checkpoint, save
from t5g2ref.config import Config
source, folder, stop = Checkpoint.open(t5g2ref.bundled("tiny")), Path(sys.argv[1]), int(sys.argv[2])
def tensors():
    for n, name in enumerate(source.tensors):
        if n == stop:
            print("half", flush=True)
            time.sleep(600)
        yield name, source.read(name)
save(folder, Config.load(source.folder), tensors(), shard_bytes=350_000)
"""


@pytest.mark.parametrize("stop", [1, 120, 230])
def test_a_killed_conversion_is_no_checkpoint(stop: int, tmp_path: Path) -> None:
    """And the next one is made in the same folder."""
    folder = tmp_path / "made"
    command = [sys.executable, "-c", CONVERT, str(folder)]
    with subprocess.Popen([*command, str(stop)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    refused(python("-m", "t5g2ref", "describe", str(folder)), "config.json: no such file")
    assert python(*command[1:], "-1").returncode == 0
    assert WHOLE in python("-m", "t5g2ref", "describe", str(folder)).stdout


# What is wrong


@pytest.mark.parametrize("name", [FIRST, "config.json"])
def test_wrong_bytes_of_the_right_size(name: str, describe: Describe, hub: Hub, tmp_path: Path) -> None:
    right = hub.files[name]
    hub.wrong[name] = right[:-3] + bytes([right[-3] ^ 1]) + right[-2:]
    kind = "SHA-256" if name == FIRST else "git's SHA-1"
    refused(describe(), f"{name} has {kind} ", "it was removed")
    assert not [blob for blob in blobs(tmp_path) if "partial" in blob]
    refused(describe(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")
    hub.wrong.clear()
    assert WHOLE in describe().stdout


def test_more_bytes_than_were_listed(describe: Describe, hub: Hub) -> None:
    hub.wrong[FIRST] = hub.files[FIRST] + b"xx"
    size = len(hub.files[FIRST])
    refused(describe(), f"{FIRST} has {size + 2:,} bytes, expected {size:,}; it was removed")


def test_bytes_without_end(describe: Describe, hub: Hub) -> None:
    """No more of them is written than shows that they are wrong."""
    hub.wrong[FIRST] = hub.files[FIRST] + bytes(64 << 20)
    done, size = describe(), len(hub.files[FIRST])
    refused(done, f"{FIRST} has ", f"expected {size:,}; it was removed")
    found = int(re.search(rf"{FIRST} has ([\d,]+) bytes", done.stderr)[1].replace(",", ""))  # type: ignore[index]
    assert size < found < size + (16 << 20)


def test_no_room(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import shutil, sys; shutil.disk_usage = lambda _: shutil._ntuple_diskusage(9, 8, 1)\n"
        f"from t5g2ref.command_line import main; sys.exit(main(['describe', {REPO!r}]))"
    )
    done = python("-W", "error", "-c", code, env=environment(hub, tmp_path / "home"))
    refused(done, "bytes more, ", "has 1 free", "set HF_HOME to a folder on a larger disk")
    assert not hub.gets(FIRST)
