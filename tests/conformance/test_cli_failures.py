"""The command on runs that fail: a tap that is wrong, a peer that raises, an interruption, no memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from command_line import Change, Ours, Run, at, narrow, raising, strictly

from conformance.commands import command_line
from conformance.commands import run as judging
from conformance.defects.catalogue import DEFECTS
from conformance.judge import sitting
from conformance.measure.limits import LIMITS
from t5g2ref import bundled
from t5g2ref.backend import BackendError


def test_deviates_at_its_tap(run: Run, tmp_path: Path) -> None:
    tap, file = "decoder.layers.2.mlp.act_fn", tmp_path / "out.json"
    wrong = Ours("wrong", at(tap, lambda value: value * np.float32(1.01)))
    status, lines, _ = run("--case", "short", "--json", str(file), peers=[Ours("right"), wrong])
    assert status == 1
    assert lines[-1] == f"VERDICT: DEVIATES (on 2 of 48 cases) at {tap} (values; wrong, case short, tiny)"
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
        ("dtype", lambda value: value.astype(np.float16)),
        ("nan", lambda value: np.where(np.arange(value.size).reshape(value.shape) == 3, np.nan, value).astype("f4")),
    ],
)
def test_fault_without_a_ratio(status: str, change: Any, run: Run, tmp_path: Path) -> None:
    """Its figures are not numbers, which JSON cannot hold and the report does not print."""
    file, tap = tmp_path / "out.json", "logits"
    peers = [Ours(change=at(tap, change))]
    code, lines, _ = run("--ckpt", "tiny", "--case", "short", "--detail", "--json", str(file), peers=peers)
    assert code == 1
    assert lines[-1] == f"VERDICT: DEVIATES (on 2 of 48 cases) at {tap} ({status}; ours, case short, tiny)"
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
    assert lines[-1] == f"VERDICT: DEVIATES (on 2 of 48 cases) at {tap} (values; ours, case short, tiny)"
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
    assert lines[-1] == "VERDICT: INCOMPLETE (on 2 of 48 cases) - broken could not be judged on case short"
    narrow(lines)
    text = "\n".join(lines)
    assert "RuntimeError: sizes differ: 7 and 8" in text
    assert f"exposed 0 of {len(DEFECTS)}" in text, "what raised has shown nothing"
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
    assert lines[-1] == f"VERDICT: DEVIATES (on 2 of 48 cases) at {tap} (values; wrong, case short, tiny)"
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
    assert lines[-1] == "VERDICT: INCOMPLETE (on 2 of 48 cases) - stops could not be judged on case short"
    narrow(lines)
    judgement = strictly(file)["judgements"][0]
    assert (judgement["culprit"]["tap"], judgement["culprit"]["status"]) == ("decoder.norm", "missing")


def test_a_deviation_outweighs_an_error(run: Run) -> None:
    peers = [
        Ours("broken", raising(RuntimeError("no"))),
        Ours("wrong", at("decoder.norm", lambda value: value + np.float32(1))),
    ]
    status, lines, _ = run("--ckpt", "tiny", "--case", "short", peers=peers)
    assert (status, lines[-1].split(";")[0]) == (1, "VERDICT: DEVIATES (on 2 of 48 cases) at decoder.norm (values")


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
        "VERDICT: DEVIATES (on 1 of 25 cases) at decoder.norm (values; wrong, case short, [/]/[red])",
    ):
        assert line in [found.rstrip() for found in lines]


def test_an_interruption_loses_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was judged before Ctrl-C is shown and written; the verdict claims no more than that."""
    judge, calls = sitting.judge, []

    def twice(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge(*arguments, **more)

    monkeypatch.setattr(sitting, "judge", twice)
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
    judge, calls = sitting.judge, []

    def full(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise BackendError("not enough memory on cupy: needed 9 GiB, free 1 GiB")
        return judge(*arguments, **more)

    monkeypatch.setattr(sitting, "judge", full)
    status, lines, _ = run("--case", "s[he]*", peers=[Ours()])
    assert status == 3
    assert len(calls) > 1
    assert any("not enough memory on cupy: needed 9 GiB" in line for line in lines)
    assert lines[-1].endswith("- ours could not be judged on case short")


def test_a_failure_of_the_suite_is_not_the_peer_s(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own exit status for an error is 1, which would read as DEVIATES."""

    def judge(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the reference never reached 3 declared taps")

    monkeypatch.setattr(sitting, "judge", judge)
    status, lines, err = run("--case", "short", peers=[Ours()])
    assert (status, lines) == (3, ["VERDICT: INCOMPLETE - the suite itself failed"])
    assert "RuntimeError: the reference never reached 3 declared taps" in err
    assert "this says nothing about a peer" in err


def test_out_of_memory_is_no_verdict_on_a_peer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(sitting, "judge", judge)
    status, lines, err = run("--case", "short", peers=[Ours()])
    assert (status, lines) == (3, ["VERDICT: INCOMPLETE - out of memory"])
    assert "conformance: out of memory; give a smaller --ckpt, or fewer cases with --case" in err


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [((), ["VERDICT: INCOMPLETE - the suite itself failed"]), (("explain",), [])],
)
def test_a_failure_before_the_options_are_known(
    arguments: tuple[str, ...], lines: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict, too, where one was to come."""

    def parser() -> Any:
        raise RuntimeError("no options today")

    monkeypatch.setattr(command_line, "parser", parser)
    status, found, err = run(*arguments)
    assert (status, found) == (3, lines)
    assert "RuntimeError: no options today" in err
    assert "this says nothing about a peer" in err
