"""What a peer says that it lacks, and what a verdict has to cover: the line says what was judged, and what was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dumping import case_of, edit, tiny, write

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from conformance import examples
from conformance.cases import catalogue, generating
from conformance.cases.abilities import ABILITIES, Required, needs, unmet, why_skipped
from conformance.commands import command_line as command

TINY = str(tiny().folder)
EXAMPLE = str(Path(examples.__file__).parent / "logits_only.py")
FORCED = tuple(word for word in ABILITIES if word != "forcing")  # a black box that reads given ids, a row at a time
TEXT = "short, window, padded-right, padded-left, decoder-window, eoi, equal-lengths, long-rows"
TEXT += ", long-answer, rows-as-heads"
PEER = """
from conformance.activations import Dump
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.defects.all import FAULTS
from conformance.defects.injection import HEALTHY

class Box(FaultyPeer):
    taps, lacks, weights = ("logits",), {lacks}, None

    def run(self, case, dump):
        assert case.name not in {refused}, case.name
        super().run(case, dump)

def create(_argument, _backend):
    box = Box({fault})
    box.name = "box"
    return box
"""
HEALTHY = "HEALTHY"
D32 = "next(f.inject for f in FAULTS if f.id == 'D32')"


def box(folder: Path, lacks: object = (), fault: str = HEALTHY, refused: tuple[str, ...] = ()) -> str:
    path = folder / "box.py"
    path.write_text(PEER.format(lacks=repr(lacks), fault=fault, refused=repr(refused)))
    return str(path)


def judged(
    capsys: pytest.CaptureFixture[str], peer: str, *more: str, lanes: tuple[str, ...] = ("fp32",)
) -> tuple[int, str]:
    lane = [word for name in lanes for word in ("--lane", name)]
    given = ["--peer", peer, "--ckpt", TINY, "--once", "--no-progress", "--jobs", "1", *lane, *more]
    status = command.main(given)
    captured = capsys.readouterr()
    return status, (captured.out.strip().splitlines() or captured.err.strip().splitlines())[-1]


def test_what_the_cases_need() -> None:
    every = {case.name: needs(case) for case in catalogue.build(tiny().config)}
    assert every["short"] == ["forcing"]
    assert every["padded-left-cached"] == ["cache", "padding", "rows", "forcing"]
    assert every["masked-steps"] == ["cache", "padding", "forcing"]
    assert every["images"] == ["images", "padding", "rows", "forcing"]
    assert every["far-positions"] == ["cache", "positions", "rows", "forcing"]
    assert "forcing" not in every["loss"], "the model itself makes the decoder's ids"
    assert {"labels"} <= set(every["loss"])
    assert {"labels", "classes"} <= set(every["token"])
    assert {word for words in every.values() for word in words} == set(ABILITIES), "a word that no case needs"


def test_text_is_what_fits() -> None:
    every, text = catalogue.build(tiny().config), Required(None, "text")
    names = {case.name for case in every if text.covers(case, ())}
    assert names.isdisjoint({"image", "images", "token", "sequence-single"})
    assert {"short", "loss", "padded-left-cached", "decoder-steps"} <= names
    assert {case.name for case in every if text.covers(case, FORCED)} >= {"short", "window"}
    assert not text.covers(case_of(tiny(), "decoder-steps"), ("cache",))
    assert why_skipped(case_of(tiny(), "short"), ("forcing",)).endswith("; `replay` judges what it chose itself")
    assert unmet(case_of(tiny(), "image"), ("cache", "images", "rows")).startswith("the peer lacks images")


def test_what_it_lacks_is_skipped_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = judged(capsys, box(tmp_path, ("images", "cache")), "--case", "image", "--case", "short")
    assert status == 3
    assert "VERDICT: INCOMPLETE on logits alone" in line
    assert "box skips case image: the peer lacks images" in line


def test_text_is_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacks = ("images", "cache", "positions", "labels", "classes")
    status, line = judged(capsys, box(tmp_path, lacks), "--require", "text")
    assert status == 0
    assert line.startswith(f"VERDICT: CONFORMS on logits alone, text cases alone: {TEXT}; not covered: ")
    assert "; not covered: " in line
    assert {"image", "images", "token", "decoder-steps"} <= set(line.split("not covered: ")[1].split(", "))


def test_a_fault_in_what_is_required_deviates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacks = FORCED
    status, line = judged(capsys, box(tmp_path, lacks, D32), "--require", "text")
    assert status == 1
    assert line.startswith("VERDICT: DEVIATES on logits alone, text cases alone: short, window, ")
    assert " at logits (values" in line


def test_named_cases_are_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = tmp_path / "wanted.toml"
    wanted.write_text('cases = ["short", "eoi"]')
    peer = box(tmp_path, ("images",))
    status, line = judged(capsys, peer, "--require", str(wanted))
    assert status == 0
    assert "required cases alone: short, eoi; not covered: window, " in line
    wanted.write_text('cases = ["short", "image"]')
    status, line = judged(capsys, peer, "--require", str(wanted))
    assert status == 3, "what was asked for by name is not left out in silence"
    assert "required cases alone: short; not covered: " in line
    assert "skips case image: the peer lacks images" in line


def test_who_fails_at_what_is_required_is_incomplete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = tmp_path / "wanted.toml"
    wanted.write_text('cases = ["short", "eoi"]')
    status, line = judged(capsys, box(tmp_path, refused=("eoi",)), "--require", str(wanted))
    assert status == 3
    assert "box could not be judged on case eoi" in line


def test_nothing_left_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = tmp_path / "wanted.toml"
    wanted.write_text('cases = ["long-rows"]')
    given = [
        "--require",
        str(wanted),
        "--ckpt",
        TINY,
        "--peer",
        "t5g2ref:numpy:bfloat16",
        "--lane",
        "bf16",
        "--no-progress",
    ]
    assert command.main(given) == 3
    assert "nothing that is required is a case that it can do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('cases = ["shrt"]', "no case is called shrt; there are: short, "),
        ("cases = []", 'expected cases = ["short", "window"] and nothing else'),
        ("cases = [1]", "expected cases ="),
        ("case = 1", "expected cases ="),
        ("short\nwindow\n", "not TOML"),
    ],
)
def test_a_requirement_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    wanted = tmp_path / "wanted.toml"
    wanted.write_text(text)
    status, line = judged(capsys, box(tmp_path), "--require", str(wanted))
    assert status == 2
    assert words in line


def test_a_requirement_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in judged(capsys, box(tmp_path), "--require", str(tmp_path / "nowhere.toml"))[1]
    assert "give one of them" in judged(capsys, box(tmp_path), "--require", "text", "--case", "short")[1]


@pytest.mark.parametrize("lacks", [("pictures",), "images", (1,)])
def test_other_words_are_refused_with_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str], lacks: Any) -> None:
    status, line = judged(capsys, box(tmp_path, lacks))
    assert status == 2
    assert "expected a tuple of words among images, cache, padding, positions, rows, labels, classes, forcing" in line


def test_probes_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = box(tmp_path, ("images", "cache", "classes", "labels", "positions", "rows"))
    assert judged(capsys, peer, "--require", "text", lanes=("exact", "fp32"))[0] == 3, "no probe is left of one row"
    peer = box(tmp_path, ("images", "cache", "classes", "labels", "positions"))
    status, line = judged(capsys, peer, "--require", "text", lanes=("exact", "fp32"))
    assert status == 0, line
    assert judged(capsys, peer, "--case", "short", lanes=("exact", "fp32"))[0] == 3, "a missing probe is no pass"


def test_an_exact_lane_that_nobody_asked_for_may_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that an engine of one row has its verdict by one command, without a lane."""
    peer = box(tmp_path, FORCED)
    status, line = judged(capsys, peer, "--require", "text", lanes=())
    assert status == 0, line
    assert line.startswith("VERDICT: CONFORMS on logits alone, text cases alone: short, window, ")


# A dump, and the example


def check(folder: Path, *more: str) -> int:
    return command.main(["check", str(folder), "--ckpt", TINY, "--no-progress", *more])


def test_a_dump_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fits = ("short", "window", "decoder-window")
    words = list(FORCED)
    folder = write(tmp_path, *fits, lacks=words)
    assert check(folder, "--case", "short", "--case", "eoi") == 3
    assert "skips case eoi: the peer lacks rows; --rows gives a row at a time" in capsys.readouterr().out
    status = check(folder, "--require", "text")
    assert "stranger skips case long-answer: the dump does not hold this case" in capsys.readouterr().out
    assert status == 3, "it fits, and the dump does not hold it"


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        (["pictures"], "expected a list of words among images"),
        ("images", "expected a list of words among images"),
        (["rows"], "case eoi: the peer lacks rows, and the dump holds the case"),
    ],
)
def test_a_dump_that_contradicts_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lacks: object, words: str
) -> None:
    folder = write(tmp_path, "eoi")
    edit(folder, lambda document: document.update(lacks=lacks))
    assert check(folder, "--case", "eoi") == 2
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("peer_installed")
def test_the_example_gets_its_verdict_in_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Path(EXAMPLE).read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 36
    out = tmp_path / "report.json"
    status, line = judged(capsys, EXAMPLE, "--require", "text", "--json", str(out))
    assert status == 0
    assert f"CONFORMS on logits alone, text cases alone: {TEXT}; not covered: " in line
    document = json.loads(out.read_text())
    assert document["covers"] in line
    assert {j["outside"] for j in document["judgements"]} == {"logits alone"}


# An edit-and-run loop


def test_quick_is_a_few_cases_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--quick", "--peer", "t5g2ref:numpy", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1] == f"VERDICT: CONFORMS (on {len(catalogue.QUICK)} of 25 cases)"
    assert "no case that was run exposes it" in out, "what it cannot see is printed"
    assert "t5g2ref:numpy:float32 shows one run" in " ".join(out.split())


@pytest.mark.parametrize("other", [("--case", "short"), ("--require", "text")])
def test_quick_chooses_the_cases_itself(capsys: pytest.CaptureFixture[str], other: tuple[str, str]) -> None:
    assert command.main(["--quick", *other, "--no-progress"]) == 2
    assert "--quick chooses the cases itself" in capsys.readouterr().err


def test_quick_has_cases_that_there_are() -> None:
    assert set(catalogue.QUICK) <= {case.name for case in catalogue.build(tiny().config)}


def test_a_prompt_asks_for_abilities_too() -> None:
    every = {case.name: needs(case) for case in generating.build(tiny().config)}
    assert every["generate-images"] == ["images", "padding", "rows"]
    assert every["generate-stop"] == ["padding", "rows"]
    assert every["generate-long"] == []
    text = Required(None, "text")
    assert [
        name for name, case in zip(every, generating.build(tiny().config), strict=True) if not text.covers(case, ())
    ] == ["generate-images"]
