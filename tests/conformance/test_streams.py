"""The command among closed, full and abandoned streams, and signals: a line or silence, and the right exit status."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from terminal import shell, stopped_at

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from conformance.selftest import workers
from conformance.sweep.engine import Engine
from conformance.sweep.pool import deaf
from conformance.terminal import NARROWEST, UNWATCHED, console

QUICK = "--peer t5g2ref:numpy:float32 --lane fp32 --case short --ckpt tiny-even --no-progress"
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, where every write fails")

# Standard output


@pytest.mark.parametrize("arguments", ["list taps", "explain", "--help", QUICK, "selftest --fault D01 --jobs 1"])
def test_a_reader_that_has_gone(arguments: str) -> None:
    done = shell(f"$python -m conformance {arguments} | true")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_a_reader_that_has_had_enough() -> None:
    done = shell(f"$python -m conformance {QUICK} | head -1")
    assert done.returncode in (0, 3)  # as it was, or was not, all written before
    assert (done.stdout, done.stderr) == ("checkpoint tiny-even: worst ratio, local / cumulative\n", "")


@FULL
@pytest.mark.parametrize("arguments", ["list cases", "--help", QUICK])
def test_a_full_disk_behind_standard_output(arguments: str) -> None:
    done = shell(f"$python -m conformance {arguments} > /dev/full")
    assert (done.returncode, done.stderr) == (2, "conformance: standard output: No space left on device\n")


@pytest.mark.parametrize("arguments", ["list cases", "check .", "export /dev/null", QUICK])
def test_standard_output_is_closed(arguments: str) -> None:
    """Nobody could read a verdict, so none is come to."""
    done = shell(f"$python -m conformance {arguments} >&-")
    assert (done.returncode, done.stderr) == (2, "conformance: standard output is closed\n")


def test_a_reader_that_has_gone_does_not_cost_the_files(tmp_path: Path) -> None:
    done = shell(f"$python -m conformance {QUICK} --html {tmp_path}/page.html | true")
    assert (done.returncode, done.stderr) == (3, "")
    assert "CONFORMS" in (tmp_path / "page.html").read_text(encoding="utf-8")


# Standard error, and standard input


@FULL
@pytest.mark.parametrize("errors", ["2>&-", "2>/dev/full"])
def test_standard_error_takes_nothing(errors: str) -> None:
    done = shell(f"$python -m conformance {QUICK} <&- {errors}")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("VERDICT: CONFORMS")
    for arguments in ("--ckpt 27b", "list weather", "explain weather"):
        done = shell(f"$python -m conformance {arguments} {errors}")
        assert (done.returncode, done.stdout) == (2, ""), arguments


def test_all_streams_are_closed() -> None:
    assert shell("$python -m conformance list cases <&- >&- 2>&-").returncode == 2


# The width


@pytest.mark.parametrize("columns", ["0", "1", str(NARROWEST - 1), "many"])
def test_a_width_that_is_none(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert console().width in (UNWATCHED, 80)
    assert console(stderr=True).width in (UNWATCHED, 80)


# Signals


EARLY = [("t5g2ref.backend", "SIGINT"), ("numpy", "SIGINT"), ("numpy", "SIGTERM")]


@pytest.mark.parametrize(("module", "name"), EARLY)
def test_a_signal_before_anything_was_begun(module: str, name: str) -> None:
    """The shell says 130 or 143 of it."""
    done = stopped_at(module, name, "conformance", "list", "cases")
    assert (done.returncode, done.stdout, done.stderr) == (-getattr(signal, name), "", "")


@pytest.mark.parametrize(
    ("module", "arguments", "name", "status"),
    [
        ("conformance.peers.entry_points", "list cases", "SIGINT", 130),
        ("conformance.peers.entry_points", "list cases", "SIGTERM", 143),
        ("conformance.peers.entry_points", "list cases", "SIGHUP", 129),
        ("conformance.commands.explain", "explain", "SIGINT", 130),
        ("conformance.commands.export", "export unmade", "SIGINT", 130),
    ],
)
def test_a_command_without_a_verdict_is_stopped(
    module: str, arguments: str, name: str, status: int, tmp_path: Path
) -> None:
    words = [str(tmp_path / word) if word == "unmade" else word for word in arguments.split()]
    done = stopped_at(module, name, "conformance", *words)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "conformance: interrupted\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_judgement_is_stopped_at_an_import(name: str) -> None:
    done = stopped_at("conformance.report.text", name, "conformance", *QUICK.split())
    assert (done.returncode, done.stderr) == (3, "conformance: interrupted\n")
    assert done.stdout == "VERDICT: INCOMPLETE - interrupted\n"


def test_a_judgement_is_stopped_while_it_judges(tmp_path: Path) -> None:
    """What came of it is reported, and the peer's process is gone."""
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(99)"
    peer = f"process:{shlex.join([sys.executable, '-c', code])}"
    options = ["--peer", peer, "--lane", "fp32", "--case", "short", "--ckpt", "tiny-even", "--no-progress"]
    with subprocess.Popen([sys.executable, "-m", "conformance", *options], stdout=-1, stderr=-1, text=True) as judge:
        while not (mark.exists() and mark.read_text()):
            assert judge.poll() is None
        judge.send_signal(signal.SIGTERM)
        out, err = judge.communicate(timeout=60)
    assert (judge.returncode, err) == (3, "")
    assert out.splitlines()[-1].endswith("interrupted after 0 of 1 comparisons")
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_signal_that_is_ignored_stays_so() -> None:
    """`nohup`, and a job that a script puts into the background."""
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    done = stopped_at("conformance.commands.listing", "SIGINT", "conformance", "list", "cases", before=ignored)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_that_is_missing_is_no_deviation() -> None:
    done = stopped_at("none", "SIGINT", "conformance", "list", "cases", before="sys.modules['numpy'] = None")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "conformance: numpy cannot be imported: pip install t5g2ref\n"


# The self-test's processes


def test_workers_are_ended_with_the_self_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    jobs = [("fault", "D01", "own"), ("fault", "D03", "own"), ("fault", "D05 missing", "own")]
    results = workers.results(workers.Given("tiny", False, False, "numpy"), jobs, Engine(2))
    next(results)
    assert multiprocessing.active_children()
    results.close()  # as an exception would
    assert not multiprocessing.active_children()
    assert os.listdir(tmp_path) == []


def test_workers_do_not_hear_what_the_terminal_sends_to_all() -> None:
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with deaf():
        heard = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert heard == "True\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
