"""The command: what it says, to whom, in how many columns, and with which exit status.

Most tests judge a peer that is our own float32 model, which needs no torch and can be made wrong at any tap.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from conformance import __main__ as command
from conformance.activations import Dump
from conformance.cases import catalogue as case_list
from conformance.cases.case import Case
from conformance.commands import request as running
from conformance.commands import run as judging
from conformance.defects.catalogue import DEFECTS
from conformance.judge import session
from conformance.measure.finding import Finding
from conformance.measure.limits import LIMITS
from conformance.oracle.run_case import models, program
from conformance.target import Target
from t5g2ref import bundled, taps
from t5g2ref.backend import BackendError
from t5g2ref.config import Config
from t5g2ref.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
Change = Callable[[int, str, Any], Any]


class Ours:
    """A peer in NumPy: right unless `change(call, tap, value)` makes it wrong; None leaves a tap out."""

    dtype = "float32"

    def __init__(self, name: str = "ours", change: Change = lambda call, tap, value: value) -> None:
        self.name, self._change = name, change

    def versions(self) -> dict[str, str]:
        return {"ours": "1.0"}

    def open(self, target: Target) -> None:
        self._target = target

    def close(self) -> None:
        del self._target

    def run(self, case: Case, dump: Dump) -> None:
        model = models(self._target.config, self._target.weights, case, "float32")[1]

        def trace_of(call: int) -> Trace:
            while dump.calls <= call:
                dump.new_call()

            def sink(name: str, value: Any) -> Any:
                shown = self._change(call, name, value)
                if shown is not None:
                    dump.put(name, np.asarray(shown))
                return value if shown is None else shown

            return Trace(sink)

        program(case)(model, trace_of)


def raising(error: Exception) -> Change:
    def change(call: int, name: str, value: Any) -> Any:
        raise error

    return change


def at(tap: str, change: Callable[[Any], Any], call: int = 0) -> Change:
    return lambda n, name, value: change(value) if (n, name) == (call, tap) else value


Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments, peers=[…])` → exit status, lines on stdout, stderr; the terminal has 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str, peers: list[Ours] | None = None) -> tuple[int, list[str], str]:
        if peers is not None:
            known = {peer.name: peer for peer in peers}
            monkeypatch.setattr(running, "names", lambda dtype: list(known))
            monkeypatch.setattr(running, "create", lambda name, backend: known[name])
            if "--lane" not in arguments:  # these show taps and cannot be probed
                arguments = (*arguments, "--lane", "fp32")
        capsys.readouterr()
        status = command.main(list(arguments))
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return call


def process(*arguments: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m conformance …`, or with `code` run before it, as a user runs it."""
    start = (
        ["-m", "conformance"]
        if not code
        else ["-c", f"{code}\nfrom conformance.__main__ import main\nsys.exit(main())"]
    )
    given = {k: v for k, v in os.environ.items() if not k.startswith(("T5G2REF_", "HF_"))}
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=ROOT,
        env=given | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def strictly(path: Path) -> dict[str, Any]:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return document


def narrow(lines: list[str], columns: int = 100) -> None:
    """No line is wider; the verdict alone, which is read by programs, may never be broken."""
    wide = [line for line in lines if len(line) > columns and not line.startswith("VERDICT: ")]
    assert not wide, wide


# Help and lists


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
    ids = [line.split()[0] for line in run("list", "faults")[1]]
    assert ids[:66] == list(DEFECTS)
    assert len(set(ids[66:])) == len(ids[66:]) >= 20
    assert all(id.startswith("X") for id in ids[66:])
    config = Config.load(bundled("tiny"))
    names = [line.split()[0] for line in run("list", "taps")[1]]
    assert names == [tap.name for tap in taps.table(config, loss=True)]
    listed = [line.split()[0] for line in run("list", "cases")[1] if not line.startswith(" ")]
    assert listed == [case.name for case in case_list.build(config)]


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
    forms = "transformers:eager|sdpa[:float32|bfloat16|float16[:cpu|cuda|cuda:1]], t5g2ref:numpy|cupy[:1]:float32|"
    others = "process:[DTYPE:]COMMAND, dir:FOLDER, ENTRY[:ARGUMENT]"
    assert err == f"conformance: no peer is called 'nobody'; there are: {forms}bfloat16|float16, {others}\n"


def test_unknown_case_lists_the_cases(run: Run) -> None:
    status, lines, err = run("--case", "short", "--case", "neither", peers=[Ours()])
    assert (status, lines) == (2, [])
    assert err.startswith("conformance: --case neither: no case matches; there are: short, window, ")
    assert err.endswith(", token\n")


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
    monkeypatch.setattr(session, "judge", work)
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
    assert lines[-1] == "VERDICT: CONFORMS (on 2 of 42 cases)"
    assert sum(line.startswith("VERDICT") for line in lines) == 1


# A run that passes


def test_conforms(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    status, lines, err = run("--case", "short", "--json", str(file), peers=[Ours("one"), Ours("two")])
    assert (status, err) == (0, "")
    assert lines[-1] == "VERDICT: CONFORMS (on 2 of 42 cases)"
    assert sum(line.startswith("VERDICT") for line in lines) == 1
    narrow(lines)
    for part in ("checkpoint tiny: worst ratio", "checkpoint tiny-even:", "one", "two", "pass", "ours 1.0"):
        assert part in " ".join(" ".join(lines).split())
    assert not any(word in line for line in lines for word in ("FAIL", "error"))

    document = strictly(file)
    assert (document["schema"], document["verdict"], document["line"]) == (2, "CONFORMS", lines[-1])
    assert document["limits"] == LIMITS
    assert document["cases"] == {"selected": 2, "available": 42}
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
    assert f"exposed {66 - len(missing)} of 66 catalogued defects; not these:" in lines


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
        assert (status, lines[-1]) == (0, "VERDICT: CONFORMS (on 2 of 42 cases)"), arguments


def test_a_peer_named_twice_is_judged_once(run: Run) -> None:
    _, lines, _ = run("--case", "short", "--peer", "ours", "--peer", "ours", "--ckpt", "tiny-even", peers=[Ours()])
    assert any(line.startswith("1 comparisons,") for line in lines)


# Runs that fail


def test_deviates_at_its_tap(run: Run, tmp_path: Path) -> None:
    tap, file = "decoder.layers.2.mlp.act_fn", tmp_path / "out.json"
    wrong = Ours("wrong", at(tap, lambda value: value * np.float32(1.01)))
    status, lines, _ = run("--case", "short", "--json", str(file), peers=[Ours("right"), wrong])
    assert status == 1
    assert lines[-1] == f"VERDICT: DEVIATES (on 2 of 42 cases) at {tap} (values; wrong, case short, tiny)"
    narrow(lines)
    text = "\n".join(lines)
    assert "wrong fails case short on tiny" in text
    assert "right fails" not in text
    assert f"first bad tap   {tap}   (local anchor, call 0)" in text
    assert "failing taps    1 of " in text, "one fault lights one row"
    assert "FAIL" in text
    document = strictly(file)
    assert document["verdict"] == "DEVIATES"
    right, wrong_ = document["judgements"][:2]
    assert right["culprit"] is None
    culprit = wrong_["culprit"]
    assert (culprit["tap"], culprit["status"], culprit["call"]) == (tap, "values", 0)
    assert culprit["worst"] > LIMITS["local"]
    assert culprit["token"] == [0, *culprit["token"][1:]]
    narrow(
        run("--case", "short", "--detail", peers=[Ours("wrong", at(tap, lambda value: value * np.float32(1.01)))])[1]
    )


@pytest.mark.parametrize(
    ("status", "change"),
    [
        ("missing", lambda value: None),
        ("dtype", lambda value: value.astype(np.float64)),
        ("nan", lambda value: np.where(np.arange(value.size).reshape(value.shape) == 3, np.nan, value).astype("f4")),
    ],
)
def test_fault_without_a_ratio(status: str, change: Any, run: Run, tmp_path: Path) -> None:
    """Its figures are not numbers, which JSON cannot hold and the report does not print."""
    file, tap = tmp_path / "out.json", "logits"
    peers = [Ours(change=at(tap, change))]
    code, lines, _ = run("--ckpt", "tiny", "--case", "short", "--detail", "--json", str(file), peers=peers)
    assert code == 1
    assert lines[-1] == f"VERDICT: DEVIATES (on 2 of 42 cases) at {tap} ({status}; ours, case short, tiny)"
    narrow(lines)
    assert any(line.startswith("short  " + status) for line in lines), "the table shows it in place of a ratio"
    culprit = strictly(file)["judgements"][0]["culprit"]
    assert (culprit["status"], culprit["worst"]) == (status, "nan")


def test_fault_in_what_is_passed_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation right by itself and the whole too far off, as errors that add up are: here by a tight limit."""
    monkeypatch.setitem(LIMITS, "cumulative", 1e-3)
    status, lines, _ = run("--ckpt", "tiny", "--case", "short", peers=[Ours()])
    assert status == 1
    tap = "encoder.text_model.embed_tokens"
    assert lines[-1] == f"VERDICT: DEVIATES (on 2 of 42 cases) at {tap} (values; ours, case short, tiny)"
    narrow(lines)
    text = "\n".join(lines)
    assert "(cumulative anchor, call 0)" in text
    assert "failing taps    0 of " in text
    assert "every single operation is right by itself: look at what is passed between them" in text


def test_peer_that_raises_is_incomplete(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    broken = Ours("broken", raising(RuntimeError("sizes differ: 7 and 8")))
    status, lines, _ = run("--case", "short", "--json", str(file), peers=[Ours(), broken])
    assert status == 3
    assert lines[-1] == "VERDICT: INCOMPLETE (on 2 of 42 cases) - broken could not be judged on case short"
    narrow(lines)
    text = "\n".join(lines)
    assert "RuntimeError: sizes differ: 7 and 8" in text
    assert "exposed 0 of 66" in text, "what raised has shown nothing"
    document = strictly(file)
    assert [j["passed"] for j in document["judgements"]] == [True, False, True, False]
    assert document["judgements"][1]["error"] == "RuntimeError: sizes differ: 7 and 8"


def stopping(tap: str, change: Change) -> Change:
    """As `change`, until `tap` comes: then it raises."""

    def stop(call: int, name: str, value: Any) -> Any:
        if name == tap:
            raise RuntimeError("sizes differ: 7 and 8")
        return change(call, name, value)

    return stop


def test_peer_that_raises_after_a_fault_deviates(run: Run, tmp_path: Path) -> None:
    """What it showed before it raised is judged."""
    tap, file = "decoder.layers.2.mlp.act_fn", tmp_path / "out.json"
    wrong = stopping("decoder.norm", at(tap, lambda value: value * np.float32(1.01)))
    status, lines, _ = run("--ckpt", "tiny", "--case", "short", "--json", str(file), peers=[Ours("wrong", wrong)])
    assert status == 1
    assert lines[-1] == f"VERDICT: DEVIATES (on 2 of 42 cases) at {tap} (values; wrong, case short, tiny)"
    narrow(lines)
    assert "then it raised  RuntimeError: sizes differ: 7 and 8" in "\n".join(lines)
    judgement = strictly(file)["judgements"][0]
    assert (judgement["passed"], judgement["error"]) == (False, "RuntimeError: sizes differ: 7 and 8")
    assert (judgement["culprit"]["tap"], judgement["culprit"]["status"]) == (tap, "values")


def test_peer_that_raises_without_a_fault_is_incomplete(run: Run, tmp_path: Path) -> None:
    """The taps that did not come to be are missing, which is no fault of its own."""
    file = tmp_path / "out.json"
    stops = Ours("stops", stopping("decoder.norm", lambda call, name, value: value))
    status, lines, _ = run("--ckpt", "tiny", "--case", "short", "--json", str(file), peers=[stops])
    assert status == 3
    assert lines[-1] == "VERDICT: INCOMPLETE (on 2 of 42 cases) - stops could not be judged on case short"
    narrow(lines)
    judgement = strictly(file)["judgements"][0]
    assert (judgement["culprit"]["tap"], judgement["culprit"]["status"]) == ("decoder.norm", "missing")


def test_a_deviation_outweighs_an_error(run: Run) -> None:
    peers = [
        Ours("broken", raising(RuntimeError("no"))),
        Ours("wrong", at("decoder.norm", lambda value: value + np.float32(1))),
    ]
    status, lines, _ = run("--ckpt", "tiny", "--case", "short", peers=peers)
    assert (status, lines[-1].split(";")[0]) == (1, "VERDICT: DEVIATES (on 2 of 42 cases) at decoder.norm (values")


@pytest.mark.parametrize(
    "text", ["[red]", "[/]", "[bold]x[/red] [link=http://x]", "\\[/]", "a" * 300, "two\nlines [/b]", "100 % {} %s"]
)
def test_error_text_is_printed_as_it_is(text: str, run: Run) -> None:
    """Nothing in it is an instruction to the console."""
    broken = Ours("broken", raising(RuntimeError(text)))
    status, lines, _ = run("--ckpt", "tiny-even", "--case", "short", "--detail", peers=[broken])
    assert status == 3
    narrow(lines)
    assert text.replace("\n", "") in "".join(line.strip() for line in lines)


def test_checkpoint_path_is_printed_as_it_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may hold what the console takes for markup: `[red]` and, as two folders, `[/]`, which closes nothing."""
    shutil.copytree(bundled("tiny-even"), tmp_path / "[" / "]" / "[red]")
    monkeypatch.chdir(tmp_path)
    wrong = Ours("wrong", at("decoder.norm", lambda value: value + np.float32(1)))
    status, lines, _ = run("--ckpt", "[/]/[red]", "--case", "short", "--detail", peers=[wrong])
    assert status == 1
    for line in (
        "checkpoint [/]/[red]: worst ratio, local / cumulative",
        "wrong on short ([/]/[red]): local ratio at every tap",
        "wrong fails case short on [/]/[red]",
        "VERDICT: DEVIATES (on 1 of 21 cases) at decoder.norm (values; wrong, case short, [/]/[red])",
    ):
        assert line in [found.rstrip() for found in lines]


def test_an_interruption_loses_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was judged before Ctrl-C is shown and written; the verdict claims no more than that."""
    judge, calls = session.judge, []

    def twice(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr(session, "judge", twice)
    status, lines, _ = run("--case", "s[he]*", "--json", str(tmp_path / "out.json"), peers=[Ours()])
    assert status == 3
    assert lines[-1].startswith("VERDICT: INCOMPLETE")
    assert "interrupted after 1 of " in lines[-1]
    written = json.loads((tmp_path / "out.json").read_text())
    assert [j["case"] for j in written["judgements"]] == ["short"]
    assert written["verdict"] == "INCOMPLETE"


def test_an_interruption_before_any_case(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(judging, "resolve", resolve)
    status, lines, err = run("--case", "short", peers=[Ours()])
    assert (status, lines, err) == (3, ["VERDICT: INCOMPLETE - interrupted"], "conformance: interrupted\n")


def test_no_memory_for_one_case_costs_that_case_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, calls = session.judge, []

    def full(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise BackendError("not enough memory on cupy: needed 9 GiB, free 1 GiB")
        return judge(*arguments)

    monkeypatch.setattr(session, "judge", full)
    status, lines, _ = run("--case", "s[he]*", peers=[Ours()])
    assert status == 3
    assert len(calls) > 1
    assert any("not enough memory on cupy: needed 9 GiB" in line for line in lines)
    assert lines[-1].endswith("- ours could not be judged on case short")


def test_a_failure_of_the_suite_is_not_the_peer_s(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own exit status for an error is 1, which would read as DEVIATES."""

    def judge(*_: Any) -> Any:
        raise RuntimeError("the reference never came by 3 declared taps")

    monkeypatch.setattr(session, "judge", judge)
    status, lines, err = run("--case", "short", peers=[Ours()])
    assert (status, lines) == (3, ["VERDICT: INCOMPLETE - the suite itself failed"])
    assert "RuntimeError: the reference never came by 3 declared taps" in err
    assert "this says nothing about a peer" in err


def test_out_of_memory_is_no_verdict_on_a_peer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(session, "judge", judge)
    status, lines, err = run("--case", "short", peers=[Ours()])
    assert (status, lines) == (3, ["VERDICT: INCOMPLETE - out of memory"])
    assert "conformance: out of memory; give a smaller --ckpt, or fewer cases with --case" in err


# What is not installed


@pytest.mark.parametrize("package", ["rich", "torch", "transformers"])
def test_without_a_package(package: str) -> None:
    done = process(code=f"import sys\nsys.modules[{package!r}] = None")
    assert (done.returncode, done.stdout) == (2, "")
    peer = "" if package == "rich" else "peer transformers:eager:float32 needs "
    if package != "transformers" or importlib.util.find_spec("torch"):  # torch is imported, and missed, first
        assert done.stderr.startswith(f"conformance: {peer}{package}")
    assert done.stderr.endswith('is not installed: pip install "t5g2ref[conformance]"\n')
    assert len(done.stderr.splitlines()) == 1


def test_lists_need_nothing() -> None:
    code = "import sys\nfor name in ('rich', 'torch', 'transformers', 'huggingface_hub'): sys.modules[name] = None"
    done = process("list", "cases", code=code)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_peer_too_old_is_not_called_missing(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def imported(module: str) -> Any:
        raise ImportError("cannot import name 'T5Gemma2Config' from 'transformers'", name="transformers")

    monkeypatch.setattr("conformance.peers.find.importlib.import_module", imported)
    status, lines, err = run("--peer", "transformers:sdpa")
    assert (status, lines) == (2, [])
    assert "could not be imported (cannot import name 'T5Gemma2Config'" in err
    assert "--upgrade" in err


def test_reader_that_has_had_enough() -> None:
    """`list taps | head`: no stack trace, and not the status that says DEVIATES."""
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "conformance", "list", "taps"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        os.close(write)
        os.close(read)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (3, "")


# The installed transformers


@pytest.fixture
def transformers_peer(peer_installed: None) -> Any:
    return importlib.import_module("conformance.peers.torch.transformers").TransformersPeer


@pytest.mark.usefixtures("peer_installed")
def test_transformers_conforms(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    status, lines, _ = run("--case", "short", "--json", str(file))
    assert status == 0
    assert lines[-1] == "VERDICT: CONFORMS (on 2 of 42 cases)"
    narrow(lines)
    document = strictly(file)
    assert {"t5g2ref", "numpy", "python", "transformers", "torch"} == set(document["environment"])
    expected = [tap.name for tap in taps.table(Config.load(bundled("tiny")), images=False)]
    half = {"transformers:eager:bfloat16:cpu", "transformers:sdpa:bfloat16:cpu"}
    assert {j["peer"] for j in document["judgements"]} == {"transformers:eager", "transformers:sdpa"} | half
    for judgement in document["judgements"]:
        if judgement["case"] == "exact":
            assert len(judgement["exact"]) > 50
            continue
        rows = [dict(zip(document["columns"], row, strict=True)) for row in judgement["local"]]
        assert [row["tap"] for row in rows] == expected
        limit = LIMITS["half" if judgement["peer"] in half else "local"]
        assert all(math.isfinite(row["worst"]) and row["worst"] <= limit for row in rows)


def test_transformers_starting_from_pad_deviates(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, transformers_peer: Any
) -> None:
    """D08: the case gives labels, and the peer has to make its decoder ids of them."""
    peer = transformers_peer
    true = peer._build

    def build(self: Any, case: Case) -> Any:
        model = true(self, case)
        shift = model.prepare_decoder_input_ids_from_labels

        def from_pad(labels: Any) -> Any:
            ids = shift(labels).clone()
            ids[:, 0] = model.config.decoder.pad_token_id
            return ids

        model.prepare_decoder_input_ids_from_labels = from_pad
        return model

    monkeypatch.setattr(peer, "_build", build)
    file = tmp_path / "out.json"
    status, lines, _ = run(
        *("--ckpt", "tiny-even", "--case", "loss", "--lane", "fp32", "--peer", "transformers:sdpa", "--json", str(file))
    )
    assert status == 1
    place = "(values, D08; transformers:sdpa, case loss, tiny-even)"
    assert lines[-1] == f"VERDICT: DEVIATES (on 1 of 21 cases) at decoder.embed_tokens {place}"
    narrow(lines)
    assert "D08 decoder starts from pad instead of bos" in "\n".join(lines)
    assert strictly(file)["judgements"][0]["culprit"]["tap"] == "decoder.embed_tokens"


@pytest.mark.usefixtures("peer_installed")
def test_as_a_process() -> None:
    options = ("--ckpt", "tiny-even", "--case", "short", "--lane", "fp32", "--no-progress")  # a slow machine tells more
    done = process(*options, "--peer", "transformers:eager")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "VERDICT: CONFORMS (on 1 of 21 cases)"
    assert done.stdout.endswith("\n")


@pytest.mark.usefixtures("peer_installed")
def test_real_weights_that_are_not_here(tmp_path: Path) -> None:
    done = process("--ckpt", "1b", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "VERDICT" not in done.stdout
    for part in ("T5G2REF_1B", "hf download google/t5gemma-2-1b-1b", "--ckpt 1b --synthetic", "accept the licence"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
