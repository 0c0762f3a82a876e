"""The command: what it says, to whom, in how many columns, and with which exit status.

Most tests judge a peer that is our own float32 model, which needs no torch and can be made wrong at any tap.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from command_line import Ours, Run, narrow, strictly

from conformance import __main__ as command
from conformance.cases import catalogue as case_list
from conformance.cases import long
from conformance.commands import run as judging
from conformance.defects.catalogue import DEFECTS
from conformance.judge import sitting
from conformance.measure.finding import Finding
from conformance.measure.limits import LIMITS
from t5g2ref import bundled, taps
from t5g2ref.config import Config


def test_help_teaches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for arguments in (["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit) as left:
            command.main(arguments)
        assert left.value.code == 0
        text = capsys.readouterr().out
        assert "exit status   0 CONFORMS   1 DEVIATES   2 bad usage or environment   3 INCOMPLETE" in text
        for option in ("--ckpt", "--synthetic", "--peer", "--case", "--backend", "--detail", "--json", "--no-progress"):
            assert option in text
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert "python -m conformance --case 'window*' --detail" in text
    assert "python -m conformance list cases" in text
    assert "$T5G2REF_1B" in text


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("cases", ["short", "five tokens to four", "D01", "D65", "token"]),
        ("taps", ["encoder.text_model.layers.0.self_attn.q_proj", "B T N*H", "lm_head", "loss", "mask"]),
        ("faults", ["D01  embedding scale omitted", "D66"]),
        ("checkpoints", ["tiny ", "tiny-even ", "google/t5gemma-2-1b-1b", "$T5G2REF_4B", "--synthetic"]),
        (
            "peers",
            ["transformers:eager", "transformers:sdpa", "|float16[:cpu|cuda|cuda:1]]", "t5g2ref:numpy|cupy[:1]:"],
        ),
    ],
)
def test_lists(what: str, parts: list[str], run: Run) -> None:
    status, lines, err = run("list", what)
    assert (status, err) == (0, "")
    text = "\n".join(lines)
    assert all(part in text for part in parts), text
    narrow(lines)


def test_lists_are_complete(run: Run) -> None:
    lines = run("list", "faults")[1]
    ids, count = [line.split()[0] for line in lines if not line.startswith(" ")], len(DEFECTS)
    assert ids[:count] == list(DEFECTS)
    assert len(set(ids[count:])) == len(ids[count:]) >= 20
    assert all(id.startswith("X") for id in ids[count:])
    assert "     seen in quic/efficient-transformers#1250" in lines
    config = Config.load(bundled("tiny"))
    lines = run("list", "taps")[1]
    names = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert names == [tap.name for tap in taps.table(config, loss=True)]
    assert any(
        line.startswith("  layers.*.self_attn.mask") and "True where the query may see" in line for line in lines
    )
    listed = [line.split()[0] for line in run("list", "cases")[1] if line and not line.startswith(" ")]
    assert listed == [*(case.name for case in case_list.build(config)), "picture-files", *long.NAMES]


@pytest.mark.parametrize("arguments", [["list"], ["list", "weather"], ["--nope"], ["judge"], ["--json"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: python -m conformance")


# Refused before any work


def test_unknown_peer(run: Run) -> None:
    status, lines, err = run("--peer", "nobody")
    assert (status, lines) == (2, [])
    forms = (
        "transformers:eager|sdpa[-static|-compile][:float32|bfloat16|float16[:cpu|cuda|cuda:1]], "
        "t5g2ref:numpy|cupy[:1]:float32|"
    )
    others = "onnxruntime, ctranslate2[:translate|score][@PYTHON], keras_hub[:torch|jax|numpy][:DTYPE][@PYTHON], "
    others += "mlx_audio[:irodori|breeze][:DTYPE][@PYTHON], "
    others += "process:[DTYPE:]COMMAND, dir:FOLDER, FILE.py[:FUNCTION], ENTRY[:ARGUMENT]"
    assert err == f"conformance: no peer is called 'nobody'; there are: {forms}bfloat16|float16[:fast], {others}\n"


def test_unknown_case_lists_the_cases(run: Run) -> None:
    status, lines, err = run("--case", "short", "--case", "neither", peers=[Ours()])
    assert (status, lines) == (2, [])
    assert err.startswith("conformance: --case neither: no case matches; there are: short, window, ")
    assert err.endswith(", rows-as-heads\n")


def test_unknown_checkpoint(run: Run) -> None:
    status, lines, err = run("--ckpt", "27b", peers=[Ours()])
    assert (status, lines) == (2, [])
    assert err.startswith("conformance: --ckpt 27b: no such folder, and not a name I know; give tiny, ")


def test_synthetic_needs_a_geometry(run: Run) -> None:
    status, lines, err = run("--synthetic", peers=[Ours()])
    assert (status, lines) == (2, [])
    assert "--synthetic needs a geometry" in err


@pytest.mark.parametrize(
    ("path", "message"), [("missing/out.json", "there is no folder"), (".", "this is a folder; name a file")]
)
def test_json_that_cannot_be_written(
    path: str, message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any, **__: Any) -> Any:
        raise AssertionError("work was begun")

    monkeypatch.setattr(judging, "resolve", work)
    monkeypatch.setattr(sitting, "judge", work)
    status, lines, err = run("--json", str(tmp_path / path), peers=[Ours()])
    assert (status, lines) == (2, [])
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, where every write fails")
def test_a_full_disk_does_not_cost_the_verdict(run: Run) -> None:
    """The report and its last line are out before the file is written; the status says that not all was done."""
    status, lines, err = run("--case", "short", "--json", "/dev/full", peers=[Ours()])
    assert status == 2
    assert "No space left" in err
    assert len(err.splitlines()) == 1
    assert lines[-1] == "VERDICT: CONFORMS (on 2 of 48 cases)"
    assert sum(line.startswith("VERDICT") for line in lines) == 1


# A run that passes


def test_conforms(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    status, lines, err = run("--case", "short", "--json", str(file), peers=[Ours("one"), Ours("two")])
    assert (status, err) == (0, "")
    assert lines[-1] == "VERDICT: CONFORMS (on 2 of 48 cases)"
    assert sum(line.startswith("VERDICT") for line in lines) == 1
    narrow(lines)
    for part in ("checkpoint tiny: worst ratio", "checkpoint tiny-even:", "one", "two", "pass", "ours 1.0"):
        assert part in " ".join(" ".join(lines).split())
    assert not any(word in line for line in lines for word in ("FAIL", "error:"))

    document = strictly(file)
    assert (document["schema"], document["verdict"], document["line"]) == (2, "CONFORMS", lines[-1])
    assert document["limits"] == LIMITS
    assert document["cases"] == {"selected": 2, "available": 48}
    assert document["environment"]["ours"] == "1.0"
    assert document["peak_bytes"] > 0 < document["seconds"]
    assert document["columns"] == list(Finding.__dataclass_fields__)
    places = [(j["target"], j["peer"], j["case"]) for j in document["judgements"]]
    assert places == [(t, p, "short") for t in ("tiny", "tiny-even") for p in ("one", "two")]
    config = Config.load(bundled("tiny"))
    expected = taps.table(config, images=False)
    for judgement in document["judgements"]:
        assert (judgement["passed"], judgement["error"], judgement["culprit"]) == (True, "", None)
        rows = {anchor: [dict(zip(document["columns"], row, strict=True)) for row in judgement[anchor]]
                for anchor in ("local", "cumulative")}  # fmt: skip
        assert [row["tap"] for row in rows["local"]] == [tap.name for tap in expected]
        assert [row["tap"] for row in rows["cumulative"]] == [tap.name for tap in expected if tap.spine]
        for row in rows["local"] + rows["cumulative"]:
            assert row["status"] == "pass"
            assert isinstance(row["worst"], int | float)
            assert 0 <= row["worst"] <= 1, "our own float32 is as far from the truth as the control, or nearer"
            assert row["tokens"] > 0
            assert len(row["token"]) == 2


def test_what_was_not_exposed_is_part_of_the_verdict(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    _, lines, _ = run("--case", "short", "--json", str(file), peers=[Ours()])
    missing = strictly(file)["not_exposed"]
    assert missing["D30"] == "no case that was run exposes it"
    assert f"exposed {len(DEFECTS) - len(missing)} of {len(DEFECTS)} catalogued defects; not these:" in lines


@pytest.mark.parametrize("columns", [80, 100])
def test_detail_has_a_row_for_every_tap(columns: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow terminal cuts the names, and never a number."""
    peers = [Ours()]
    monkeypatch.setenv("COLUMNS", str(columns))
    status, lines, _ = run("--ckpt", "tiny-even", "--case", "cross-cached", "--detail", peers=peers)
    assert status == 0
    narrow(lines, columns)
    rows = [line.split() for line in lines if line.strip().endswith("pass") and line.strip()[0].isdigit()]
    plan = taps.table(Config.load(bundled("tiny-even")), images=False)
    later = [tap for tap in plan if not tap.first_call]  # four calls
    cumulative = [*(tap for tap in plan if tap.spine), *3 * [tap for tap in later if tap.spine]]
    assert len(rows) == len(plan) + 3 * len(later) + len(cumulative)
    assert all(len(row) == 9 for row in rows)
    assert not any("…" in cell for row in rows for i, cell in enumerate(row) if i != 1)
    assert (columns == 100) == (not any("…" in row[1] for row in rows))


def test_options_before_the_word_run_are_kept(run: Run) -> None:
    for arguments in (
        ("--case", "short", "run"),
        ("run", "--case", "short"),
        ("--ckpt", "tiny", "run", "--case", "short"),
    ):
        status, lines, _ = run(*arguments, peers=[Ours()])
        assert (status, lines[-1]) == (0, "VERDICT: CONFORMS (on 2 of 48 cases)"), arguments


def test_a_peer_named_twice_is_judged_once(run: Run) -> None:
    _, lines, _ = run("--case", "short", "--peer", "ours", "--peer", "ours", "--ckpt", "tiny-even", peers=[Ours()])
    assert any(line.startswith("1 comparisons,") for line in lines)
