"""Nothing lost: what has ended is kept, a run goes on where it was, a process that dies costs what it had in hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs rich: the report is made with it")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from command_line import process
from sharing import DYING, command, verdict

from conformance.judge.comparisons import Comparison
from conformance.judge.judgement import Judgement
from conformance.judge.sitting import Beside
from conformance.sweep import keeping
from conformance.sweep.kept import line_of
from conformance.sweep.record import Record

EVERY = 7  # comparisons of `asked`: the exact lane and six cases
CASES = ("short", "window", "eoi", "loss", "padded-left", "token")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dying.py").write_text(DYING)
    return tmp_path


@pytest.fixture
def asked(folder: Path) -> list[str]:
    return [f"--peer={folder}/dying.py", "--ckpt=tiny-even", *(f"--case={case}" for case in CASES)]


@pytest.fixture
def whole(folder: Path, asked: list[str]) -> Any:
    """The verdict of a run that nothing happens to."""
    assert command(*asked, "--json", folder / "whole.json")[0] == 0
    return verdict(folder / "whole.json")


def kept(folder: Path) -> list[str]:
    """The cases that the file holds."""
    return [json.loads(line)["comparison"][2] for line in (folder / "kept").read_text().splitlines()[1:]]


# A process that dies


def test_a_worker_that_is_killed_costs_nothing(folder: Path, asked: list[str], whole: Any) -> None:
    (folder / "left").write_text("1")
    status, _, err = command(*asked, "--jobs=2", "--json", folder / "report.json")
    assert (status, err) == (0, "")
    assert (folder / "left").read_text() == "0"
    assert verdict(folder / "report.json") == whole


def test_one_that_is_killed_again_makes_its_comparison_incomplete_by_name(folder: Path, asked: list[str]) -> None:
    (folder / "left").write_text("9")
    kept_in = folder / "kept"
    status, out, _ = command(*asked, "--jobs=2", "--json", folder / "report.json", "--resume", kept_in)
    assert status == 3
    assert "could not be judged on case eoi" in out.splitlines()[-1]
    judged = {j["case"]: j for j in json.loads((folder / "report.json").read_text())["judgements"]}
    assert {case for case, j in judged.items() if j["passed"]} == {"exact", *CASES} - {"eoi"}
    assert "SIGKILL" in judged["eoi"]["error"]
    assert "eoi" not in kept(folder)  # another run shall try it again
    (folder / "left").write_text("0")
    assert command(*asked, "--resume", kept_in)[0] == 0
    assert not kept_in.exists()


def test_shards_of_which_one_lost_a_worker_give_the_same_verdict(folder: Path, asked: list[str], whole: Any) -> None:
    for i in (1, 2):
        (folder / "left").write_text("1")
        command(*asked, f"--shard={i}/2", "--json", folder / f"{i}.json", "--jobs=2")
    assert command("merge", folder / "1.json", folder / "2.json", "--json", folder / "report.json")[0] == 0
    assert verdict(folder / "report.json") == whole


# A run that is interrupted


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_an_interrupted_run_goes_on_where_it_was(
    folder: Path, asked: list[str], whole: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "left").write_text("1")
    if how == "stopped":
        (folder / "softly").touch()
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # see `command`
    first = process(*asked, "--jobs=1", "--resume", str(folder / "kept"))
    assert first.returncode == (-9 if how == "killed" else 3), first.stderr
    ended = kept(folder)
    assert ended == ["exact", "short", "window", "padded-left"]
    status, _, err = command(*asked, "--resume", folder / "kept", "--json", folder / "report.json")
    assert (status, err) == (0, "")
    assert verdict(folder / "report.json") == whole
    assert not (folder / "kept").exists()  # the next run shall judge what is there then


def begun(folder: Path, asked: list[str]) -> Path:
    """What a run leaves that ended in the case eoi."""
    (folder / "left").write_text("1")
    (folder / "softly").touch()
    assert command(*asked, "--resume", folder / "kept")[0] == 3
    return folder / "kept"


@pytest.mark.parametrize("tail", [b'{"comparison": ["tiny', b"\x00" * 50, b'{"comparison"'])
def test_what_a_power_cut_left_of_a_line_is_taken_away(folder: Path, asked: list[str], whole: Any, tail: bytes) -> None:
    path = begun(folder, asked)
    content = path.read_bytes()
    path.write_bytes(content + tail)
    (folder / "left").write_text("1")
    assert command(*asked, "--resume", path)[0] == 3
    assert path.read_bytes() == content
    assert command(*asked, "--resume", path, "--json", folder / "report.json")[0] == 0
    assert verdict(folder / "report.json") == whole


def test_a_file_of_which_nothing_was_written_is_begun_anew(folder: Path, asked: list[str]) -> None:
    (folder / "kept").write_bytes(b'{"format": "t5g2ref-com')
    assert command(*asked, "--resume", folder / "kept")[0] == 0


def refused(folder: Path, *arguments: str | Path) -> str:
    status, out, err = command(*arguments, "--resume", folder / "kept")
    assert (status, out, err.count("\n")) == (2, "", 1), (status, out, err)
    return err


def test_another_run_s_file_is_refused_and_left_alone(folder: Path, asked: list[str]) -> None:
    content = begun(folder, asked).read_bytes()
    peer, _, *cases = asked
    assert "--ckpt 'tiny-even', not 'tiny-released'" in refused(folder, peer, "--ckpt=tiny-released", *cases)
    assert "--case" in refused(folder, *asked[:-1])
    assert "is of --shard 1/1, not 1/2" in refused(folder, *asked, "--shard=1/2", "--json", folder / "1.json")
    assert (folder / "kept").read_bytes() == content


def test_other_versions_of_the_peer_are_refused(folder: Path, asked: list[str]) -> None:
    path = begun(folder, asked)
    lines = [json.loads(line) for line in path.read_text().replace('{"numpy": "', '{"numpy": "0.').splitlines()]
    path.write_text("".join(line_of({name: line[name] for name in line if name != "sum"}) for line in lines))
    assert "numpy 0." in refused(folder, *asked)


def test_a_damaged_file_is_refused(folder: Path, asked: list[str]) -> None:
    path = begun(folder, asked)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join((lines[0], line_of({"a": 1}), *lines[1:])))
    assert "expected an object with comparison" in refused(folder, *asked)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_file_is_refused(folder: Path, asked: list[str], make: Callable[[Path], None]) -> None:
    make(folder / "kept")
    refused(folder, *asked)
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("content", [b'{"a": 1}', b"my notes", b'{"format": "t5g2ref-comparisons", "version": 2'])
def test_what_is_not_ours_is_left_alone(folder: Path, asked: list[str], content: bytes) -> None:
    """Also where it has no whole line: a small JSON, say."""
    (folder / "kept").write_bytes(content)
    assert "holds something else, which would be lost" in refused(folder, *asked)
    assert (folder / "kept").read_bytes() == content


def test_a_whole_share_is_left_alone(folder: Path, asked: list[str]) -> None:
    assert command(*asked, "--shard=1/2", "--json", folder / "kept")[0] == 0
    content = (folder / "kept").read_bytes()
    assert "is a whole share, which would be lost" in refused(
        folder, *asked, "--shard=1/2", "--json", folder / "x.json"
    )
    assert (folder / "kept").read_bytes() == content


@pytest.mark.parametrize("more", [(), ("--shard=1/2",)])
def test_the_report_is_another_file(folder: Path, asked: list[str], more: tuple[str, ...]) -> None:
    """Broken by a report that is written and then deleted as what was kept."""
    assert "--resume and --json name the same file" in refused(folder, *asked, *more, "--json", folder / "kept")
    assert not (folder / "kept").exists()


def test_another_peer_s_file_is_refused(folder: Path, asked: list[str]) -> None:
    """What was judged before it was changed says nothing of what it is now."""
    content = begun(folder, asked).read_bytes()
    peer = folder / "dying.py"
    peer.write_text(peer.read_text() + "\n# another\n")
    assert f"was begun with another content of {peer}" in refused(folder, *asked)
    assert (folder / "kept").read_bytes() == content


def test_two_runs_cannot_keep_in_one_file(folder: Path, asked: list[str]) -> None:
    with (folder / "kept").open("ab") as handle:
        if not keeping.locked(handle):
            pytest.skip("this file system has no locks")
        assert "another process is adding to it" in refused(folder, *asked)


def test_a_full_disk_costs_no_verdict(folder: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    written = keeping.Keeping._add

    def full(self: keeping.Keeping, line: str) -> None:
        if line.startswith('{"comparison"') and '"window"' in line:
            raise OSError(28, "No space left on device")
        written(self, line)

    monkeypatch.setattr(keeping.Keeping, "_add", full)
    status, _, err = command(*asked, "--resume", folder / "kept")
    assert status == 0
    assert "No space left on device; what comes now is not kept" in err


def test_what_is_kept_is_what_was_found(folder: Path, asked: list[str]) -> None:
    one = Record(Comparison("tiny", "p", "short"), [Judgement("p", "short")], Beside({"p": {"torch": "1"}}))
    other = Beside({"p": {"torch": "2"}})
    assert one.beside.unlike(other) == "p in torch 1, not torch 2"
    assert not one.beside.unlike(Beside({"q": {"torch": "2"}}))
