"""Files are whole or not at all, whatever fails while they are written; and a pipe is never waited for."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from t5g2ref import files


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    path.write_text("earlier")
    return path


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_written(target: Path) -> None:
    files.write_text(target, "‖ new ‖")
    assert target.read_text(encoding="utf-8") == "‖ new ‖"
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_earlier_file_outlives_a_failure(target: Path, error: BaseException) -> None:
    def written() -> None:
        with files.replacing(target) as made:
            made.write_text("half of it")
            raise error

    with pytest.raises(type(error)):
        written()
    assert (target.read_text(), os.listdir(target.parent)) == ("earlier", [target.name])


def test_the_earlier_file_outlives_a_rename_that_fails(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(target, "new")
    assert (target.read_text(), os.listdir(target.parent)) == ("earlier", [target.name])


def test_two_writers_do_not_mix(target: Path) -> None:
    with files.replacing(target) as one, files.replacing(target) as other:
        one.write_text("one" * 1000)
        other.write_text("other")
    assert target.read_text() == "one" * 1000  # the last to end, whole
    assert os.listdir(target.parent) == [target.name]


def test_the_mode_is_kept_and_a_new_one_is_the_usual(target: Path) -> None:
    target.chmod(0o640)
    files.write_text(target, "new")
    assert target.stat().st_mode & 0o777 == 0o640
    plain, made = target.with_name("plain"), target.with_name("made")
    plain.touch()
    files.write_text(made, "new")
    assert made.stat().st_mode == plain.stat().st_mode


def test_a_link_stays_and_what_it_leads_to_is_replaced(target: Path) -> None:
    link = target.with_name("link")
    link.symlink_to(target.name)
    files.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_link_in_a_folder_of_ours_is_replaced(target: Path) -> None:
    link = target.with_name("link")
    link.symlink_to(target.name)
    with files.replacing(link) as made:
        made.write_text("new")
    assert not link.is_symlink()
    assert (link.read_text(), target.read_text()) == ("new", "earlier")


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a pipe"), (os.mkdir, "a folder")])
def test_what_is_no_file_is_not_written(tmp_path: Path, make: Any, kind: str) -> None:
    make(tmp_path / "x")
    assert files.in_the_way(tmp_path / "x") == kind
    with pytest.raises(OSError, match=f"this is {kind}, expected a file"):
        files.write_text(tmp_path / "x", "new")
    assert os.listdir(tmp_path) == ["x"]


def test_a_device_stays_one() -> None:
    files.write_text(Path(os.devnull), "new")
    assert Path(os.devnull).is_char_device()
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="No space left"):
            files.write_text(Path("/dev/full"), "new")
        assert Path("/dev/full").is_char_device()


def test_a_file_is_opened(target: Path) -> None:
    with files.opened(target) as handle:
        assert handle.read() == b"earlier"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="this is no file"):
        files.opened(tmp_path / "pipe")


def test_one_writer_a_folder(tmp_path: Path) -> None:
    other = files.alone(tmp_path)
    with files.alone(tmp_path), pytest.raises(BlockingIOError, match="another process is writing into this folder"):
        other.__enter__()
    with files.alone(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(files.fcntl is None, reason="needs locks of files")
def test_a_disk_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with files.alone(tmp_path):
        pass
