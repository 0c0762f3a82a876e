"""tools/fuzz.py: a few hundred tries find nothing, and every sort of fault that there may be is found.

Everything runs in processes of its own: the campaign splits processes off, which a process with threads should not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT, python

sys.path.append(str(ROOT / "tools"))

from fuzzing import lawful

for package in ("rich", "tokenizers", "PIL"):
    pytest.importorskip(package, reason=f"needs {package}: it reads inputs of the campaign, or shows its table")
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux does")

TRIES = 200
CLASSES = {
    *("config", "safetensors", "index", "checkpoint", "tokenizer", "picture", "dump", "process", "known", "export"),
    "command line",
}


def fuzz(*arguments: str) -> tuple[int, str]:
    done = python("tools/fuzz.py", "--jobs", "1", "--no-progress", *arguments, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_a_few_hundred_tries_find_nothing(tmp_path: Path) -> None:
    status, said = fuzz("--tries", str(TRIES), "--seed", "3", "--json", str(tmp_path / "figures.json"))
    assert status == 0, said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["findings"] == []
    assert set(figures["classes"]) == CLASSES | {"all"}
    assert figures["classes"]["all"]["tries"] == TRIES
    tried = [figures["classes"][name] for name in CLASSES]
    assert all(one["tries"] == sum(one["ends"].values()) > 0 for one in tried)
    assert all(one["ends"]["accepted"] + one["ends"]["refused"] == one["tries"] for one in tried)


@pytest.mark.parametrize("arguments", [("--tries", "0"), ("--jobs", "0"), ("--seed", "-1"), ("--class", "nothing")])
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    assert fuzz(*arguments)[0] == 2


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_ends_its_workers_when_it_is_asked_to_end(tmp_path: Path) -> None:
    """Told before anything is done, as well as later: nobody stays, and the figures so far are shown."""
    command = [sys.executable, str(ROOT / "tools/fuzz.py"), "--jobs", "2", "--tries", "4000", "--no-progress"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    running = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment, start_new_session=True)
    while not list(tmp_path.glob("fuzz-*/try-*")):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 3, err
    assert err.startswith("fuzz: interrupted after ")
    for _ in range(120):  # a try that is under way has ten seconds of its own
        if not _alive(running.pid):
            break
        time.sleep(0.1)
    assert not _alive(running.pid)
    assert not list(tmp_path.glob("fuzz-*"))


def test_what_is_still_written_does_not_keep_the_folder() -> None:
    body = """
import tempfile, threading
place = tempfile.TemporaryDirectory(prefix="fuzz-")
root, late = Path(place.name), iter(range(400))
def write():
    for number in late:  # a folder that fills while it is emptied
        (root / "e" / str(number % 7)).mkdir(parents=True, exist_ok=True)
        time.sleep(0.001)
writer = threading.Thread(target=write)
writer.start()
campaign.remove(place)
writer.join()
place.cleanup()
assert not root.exists()
"""
    ran(body)


IN_A_WORKPLACE = """
import os, sys, time
sys.path[:0] = [{tools!r}, {root!r}]
from pathlib import Path
from fuzzing import campaign
os.environ |= campaign.ALONE
from fuzzing import lawful, tries
from fuzzing.kinds import KINDS
{body}
"""


def ran(body: str) -> str:
    program = IN_A_WORKPLACE.format(tools=str(ROOT / "tools"), root=str(ROOT), body=body)
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    return done.stdout


READERS = """
def raises(folder, base): int("no number")
def own(folder, base): raise lawful.Refused("x.json: a is 1, expected 2; write 2")
def long(folder, base): raise lawful.Refused("x" * 3000)
def lines(folder, base): raise lawful.Refused("one\\ntwo")
def escapes(folder, base): raise lawful.Refused("x\\x1b[2J")
def sleeps(folder, base): time.sleep(60)
def slow(folder, base): time.sleep(0.7); raise lawful.Refused("late")
def dies(folder, base): os.abort()
def leaves(folder, base): os._exit(0)
def ends(folder, base): raise SystemExit(0)
def deep(folder, base): deep(folder, base)
def takes(folder, base): b"x" * (150 << 20); raise lawful.Refused("too large")
def endless(folder, base): return b"x" * (9 << 30)
def good(folder, base): return 1
def wrong(value, folder, base): raise lawful.FalsePass("it says 2")
def spoil(rng, base, folder): (folder / "x").write_bytes(rng.randbytes(4))
limits = tries.Limits(seconds={seconds})
checks = {{"lies": dict(read=good, verify=wrong)}}
parts = {{"read": globals().get("{name}")}} | checks.get("{name}", {{}})
kind = tries.Kind("{name}", 1, lambda folder: None, spoil, refusals=(KeyError,), **parts)
with campaign.workplace([kind]) as root:
    result = campaign.one(kind, 7, root, limits, Path({keep!r}))
    print(result.outcome.end, "|", result.command, "|", result.outcome.text.replace("\\n", " "))
"""


@pytest.mark.parametrize(
    ("name", "end", "words"),
    [
        ("good", "accepted", ""),
        ("own", "refused", "expected 2"),
        ("raises", "traceback", "ValueError: invalid literal"),
        ("long", "traceback", "it is too long"),
        ("lines", "traceback", "it is of 2 lines, and not a listing"),
        ("escapes", "traceback", "a character that acts on a terminal"),
        ("sleeps", "hang", "no end within 0.5 s"),
        ("slow", "hang", "no end within 0.5 s"),
        ("dies", "traceback", "the process ended, wait status 6"),
        ("leaves", "traceback", "the process ended, wait status 0"),
        ("ends", "traceback", "SystemExit"),
        ("deep", "traceback", "RecursionError"),
        ("takes", "memory", "MiB for files of 0.00: too large"),
        ("endless", "traceback", "MemoryError"),
        ("lies", "false pass", "it says 2"),
    ],
)
def test_every_sort_of_fault_is_found(tmp_path: Path, name: str, end: str, words: str) -> None:
    seconds = 0.5 if end == "hang" else 30
    said = ran(READERS.format(name=name, seconds=seconds, keep=str(tmp_path)))
    found, command, text = said.split(" | ", 2)
    assert found == end
    assert command == f"python tools/fuzz.py --class {name} --seed 7 --tries 1"
    assert words in text
    assert (tmp_path / f"{name}-7" / "input" / "x").exists() is (end not in ("accepted", "refused"))


def test_a_dump_that_should_not_pass_is_seen() -> None:
    """The judge is made blind: then every spoilt number is a false pass."""
    said = ran("""
from random import Random
from fuzzing import commands, dumps
commands.judged = lambda *_: None
with campaign.workplace([dumps.KIND]) as root:
    base, ends = root / "base" / "dump", []
    def spoil(rng, base, folder):
        dumps.shutil.copytree(base / "least", folder / "least")
        dumps.values(rng, folder / "least")
    blind = tries.Kind("dump", 1, dumps.base, spoil, lambda *_: None, (), dumps.verify)
    for number in range(12):
        print(campaign.one(blind, number, root, tries.Limits(), None).outcome.end)
""").splitlines()
    assert said.count("false pass") >= 8
    assert set(said) <= {"false pass", "accepted"}


def test_weights_that_are_not_the_file_s_are_seen() -> None:
    said = ran("""
from fuzzing import weights
def sound(rng, base, folder): weights.shutil.copytree(base / "plain", folder / "c")
def other(folder, base):
    config, values = weights.read_target(folder, base)
    return config, {name: value + (name == "decoder.norm.weight") for name, value in values.items()}
for read in (weights.read_target, other):
    kind = tries.Kind("checkpoint", 1, weights.folder_base, sound, read, (), weights.verify_folder)
    with campaign.workplace([kind]) as root:
        print(campaign.one(kind, 0, root, tries.Limits(), None).outcome.end)
""").splitlines()
    assert said == ["accepted", "false pass"]


SOUND = """
from random import Random
from fuzzing import configs, dumps, headers, raw, tree, weights
same = lambda rng, data, *_: data
raw.spoilt = configs.spoilt = headers.spoilt = tree.spoilt = same
weights.misplace = tree.spoil = dumps.values = dumps.manifest = lambda *_: None
for name in ("config", "safetensors", "index", "checkpoint", "dump"):
    kind = KINDS[name]
    with campaign.workplace([kind]) as root:
        print(*(campaign.one(kind, number, root, tries.Limits(), None).outcome.end for number in range(4)))
"""


def test_what_nobody_spoilt_is_accepted() -> None:
    """Else a campaign would only ever see the first thing that is refused."""
    assert set(ran(SOUND).split()) == {"accepted"}


def test_a_number_decides_the_input() -> None:
    made = """
from random import Random
import hashlib, tempfile
for name in ("config", "tokenizer", "picture", "known"):
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        (root / "base").mkdir()
        KINDS[name].base(root / "base")
        for number in range(6):
            (folder := root / str(number)).mkdir()
            KINDS[name].spoil(Random(f"{name}:{number}"), root / "base", folder)
            print(name, *(hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())))
"""
    first = ran(made)
    assert first == ran(made)
    assert len(set(first.splitlines())) > 12


def test_the_words_of_a_refusal() -> None:
    assert lawful.fault("x.json: a is 1, expected 2") == ""
    assert lawful.fault("the tensors do not fit\n3 missing (download again)\n  a: expected (1,), found nothing") == ""
    assert lawful.fault("") == "it says nothing"
    assert "51 lines" in lawful.fault("x" + "\n  y" * 50)
    with pytest.raises(lawful.Unlawful, match="several lines"):
        lawful.notes(["a", "b\n  c"])
