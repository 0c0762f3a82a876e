"""`python -m t5g2ref` among closed, full and abandoned streams, and signals."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from terminal import shell, stopped_at

import t5g2ref

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, where every write fails")


def test_a_reader_that_has_had_enough() -> None:
    done = shell("$python -m t5g2ref describe 4b | true")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


@FULL
def test_a_full_disk_behind_standard_output() -> None:
    done = shell("$python -m t5g2ref describe 4b > /dev/full")
    assert (done.returncode, done.stderr) == (2, "t5g2ref: standard output: No space left on device\n")


def test_standard_output_is_closed() -> None:
    done = shell("$python -m t5g2ref describe 4b >&-")
    assert (done.returncode, done.stderr) == (2, "t5g2ref: standard output is closed\n")


@FULL
@pytest.mark.parametrize("errors", ["2>&-", "2>/dev/full"])
def test_standard_error_takes_nothing(errors: str) -> None:
    assert shell(f"$python -m t5g2ref describe 4b {errors}").returncode == 0
    assert shell(f"$python -m t5g2ref describe nowhere {errors}").returncode == 2


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_before_anything_was_begun(name: str) -> None:
    """The shell says 130 or 143 of it."""
    done = stopped_at("numpy", name, "t5g2ref", "describe", "4b")
    assert (done.returncode, done.stdout, done.stderr) == (-getattr(signal, name), "", "")


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_it_is_stopped(name: str, status: int) -> None:
    done = stopped_at(
        "t5g2ref.processor.image", name, "t5g2ref", "generate", "tiny", "--ids", "5", "--image", "none.png"
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "t5g2ref: interrupted\n")


def test_a_pipe_in_place_of_a_picture(tmp_path: Path) -> None:
    done = shell(f"mkfifo {tmp_path}/pipe; $python -m t5g2ref generate tiny --ids 5 --image {tmp_path}/pipe")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"t5g2ref: {tmp_path}/pipe: this is no file\n"


def test_an_error_of_its_own_is_not_status_1() -> None:
    broken = "import t5g2ref.commands.describe as c; c.run = lambda _: 1 / 0"
    done = stopped_at("none", "SIGINT", "t5g2ref", "describe", "4b", before=broken)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_ctrl_c_is_minded_before_numpy_is_imported() -> None:
    done = shell("$python -c 'import sys, t5g2ref.streams; print(\"numpy\" in sys.modules)'")
    assert done.stdout == "False\n"


def test_what_the_package_names_is_there() -> None:
    for name in t5g2ref.__all__:
        assert getattr(t5g2ref, name).__module__.startswith("t5g2ref")
    with pytest.raises(AttributeError, match="module 't5g2ref' has no attribute 'nothing'"):
        _ = t5g2ref.nothing
