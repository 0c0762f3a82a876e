"""The files of a report are whole or not there; an earlier one is kept where it cannot be replaced."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from conformance import __main__ as command
from conformance.commands import selftest
from conformance.selftest.matrix import Outcome

KINDS = ("json", "junit", "html", "markdown", "badge")
QUICK = ("--peer", "t5g2ref:numpy:float32", "--lane", "fp32", "--case", "short", "--ckpt", "tiny-even", "--no-progress")
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_earlier_report_outlives_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that is cut would still say CONFORMS on its top."""
    outputs = [part for kind in KINDS for part in (f"--{kind}", str(tmp_path / f"report.{kind}"))]
    assert command.main([*QUICK, *outputs]) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == len(KINDS)
    write = Path.write_text

    def full(path: Path, text: str, **how: Any) -> None:
        write(path, text[: len(text) // 2], **how)
        raise NO_SPACE

    monkeypatch.setattr(Path, "write_text", full)
    capsys.readouterr()
    assert command.main([*QUICK, *outputs]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("VERDICT: CONFORMS")
    assert err == f"conformance: --json {tmp_path / 'report.json'}: cannot be written: No space left on device\n"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, where every write fails")
def test_a_file_that_fails_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert command.main([*QUICK, "--json", "/dev/full", "--html", str(page)]) == 2
    assert "--json /dev/full: cannot be written: No space left" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")


@pytest.mark.parametrize("option", ["--json", "--junit", "--html"])
def test_a_pipe_is_refused_before_any_work(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert command.main([*QUICK, option, str(tmp_path / "pipe")]) == 2
    assert capsys.readouterr() == ("", f"conformance: {option} {tmp_path / 'pipe'}: this is a pipe; name a file\n")
    assert command.main(["selftest", "--fault", "D01", "--json", str(tmp_path / "pipe")]) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert command.main([*QUICK, "--json", str(tmp_path / "x")]) == 2
    assert f"nothing may be written into {tmp_path}" in capsys.readouterr().err


def test_a_pipe_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be waited for until somebody wrote into it."""
    pipe = tmp_path / "manifest.json"
    os.mkfifo(pipe)
    for arguments, said in (
        ((*QUICK, "--known", str(pipe)), f"--known {pipe}: cannot be read: this is no file"),
        (("check", str(tmp_path)), f"dump {tmp_path}: 'manifest.json': no such file in the folder"),
        (("check", str(pipe)), f"dump {pipe}: no such folder"),
        (("export", str(pipe)), f"{pipe}: this is a file; name a folder"),
        ((*QUICK, "--ckpt", str(pipe)), f"--ckpt {pipe}: this is a file, expected a folder or a .safetensors file"),
    ):
        assert command.main(list(arguments)) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert said in err


def test_the_self_test_s_file_outlives_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "selftest.json"
    path.write_text("earlier")

    def full(*_: Any, **__: Any) -> None:
        raise NO_SPACE

    monkeypatch.setattr(selftest, "_run", lambda *_: None)
    monkeypatch.setattr(Outcome, "failures", lambda _: [])
    monkeypatch.setattr(Path, "write_text", full)
    assert command.main(["selftest", "--fault", "D01", "--no-progress", "--json", str(path)]) == 2
    assert "VERDICT: " in capsys.readouterr().out
    assert (path.read_text(), os.listdir(tmp_path)) == ("earlier", [path.name])
