"""The page about CI and the composite action: their programs run, and every option in them exists."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from documents import document, judgement, row
from processes import ROOT

from conformance.report.badge import render

PAGE = (ROOT / "conformance" / "published" / "ci.md").read_text(encoding="utf-8")
ACTION = ROOT / "tools" / "action" / "action.yml"
BASH = pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash: the action's steps are run with it")


def badge(*judgements: dict[str, Any], **more: Any) -> tuple[str, str]:
    found = json.loads(render(document(*judgements, **more)))
    assert (found["schemaVersion"], found["label"]) == (1, "T5Gemma 2")
    assert set(found) == {"schemaVersion", "label", "message", "color"}
    return found["message"], found["color"]


def test_a_badge_says_no_more_than_the_verdict() -> None:
    half = judgement(peer="half", dtype="bfloat16")
    part = {"line": "VERDICT: CONFORMS (on 1 of 23 cases)"}
    known = {"line": "VERDICT: CONFORMS with 1 known deviation"}
    assert badge(judgement(), half) == ("conforms in float32, bfloat16", "brightgreen")
    assert badge(judgement(), **part) == ("conforms in float32, in part", "yellowgreen")
    assert badge(judgement(), **known) == ("conforms in float32, in part", "yellowgreen")
    assert badge(judgement(row("logits", "values", 90.0))) == ("deviates", "red")
    assert badge(judgement(passed=False, skipped="later")) == ("incomplete", "lightgrey")
    assert badge(judgement(local=[], cumulative=[])) == ("conforms", "brightgreen"), "the exact lane alone"


def test_its_python_is_what_there_is() -> None:
    pytest.importorskip("rich", reason="needs rich: the assertion's message is laid out with it")
    import inspect

    from conformance.peers.function import INPUTS
    from conformance.testing import assert_conforms

    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        compile(block, "ci.md", "exec")
        assert block.count("assert_conforms(") == 1
    arguments = set(inspect.signature(assert_conforms).parameters) - {"peer"}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == arguments
    assert all(f"`{name}`" in PAGE for name in INPUTS)


def steps(text: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: the recipe is read with it")
    found: list[dict[str, Any]] = yaml.safe_load(text)
    return found


def parsed(arguments: list[str]) -> None:
    pytest.importorskip("rich", reason="needs rich: without it the judge's commands have no options")
    from conformance.commands.command_line import parser

    parser().parse_args(arguments)


def recipes() -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_a_matrix_makes_every_part_and_one_verdict() -> None:
    """Each job takes what its number says, and what they keep is what `merge` is given."""
    part, verdict = steps(recipes()[2])["jobs"].values()  # type: ignore[call-overload]
    parts = part["strategy"]["matrix"]["part"]
    (judged,) = (step for step in part["steps"] if "-m conformance" in step.get("run", ""))
    commands = [judged["run"].replace("${{ matrix.part }}", str(number)).split()[3:] for number in parts]
    for number, command in enumerate(commands, 1):
        parsed(command)
        assert f"{number}/{len(parts)}" in command
        assert command[-1] == f"part-{number}.json"
    assert judged["continue-on-error"] is True
    assert part["strategy"]["fail-fast"] is False
    (kept,) = (step for step in part["steps"] if "upload-artifact" in step.get("uses", ""))
    assert kept["with"]["path"] == "part-*.json"
    assert verdict["needs"] == "part"
    parsed(verdict["steps"][-1]["run"].split()[3:])
    assert "part-*.json" in verdict["steps"][-1]["run"]


def test_its_recipes_are_yaml_and_call_what_there_is() -> None:
    first, second, _ = recipes()
    assert len(first.splitlines()) <= 10
    (used,) = (step for step in steps(first)["jobs"]["conformance"]["steps"] if "with" in step)  # type: ignore[call-overload]
    assert used["uses"].split("@")[0] == f"OWNER/t5g2ref/{ACTION.parent.relative_to(ROOT)}"
    assert set(used["with"]) <= set(action()["inputs"])
    (run,) = (step["run"] for step in steps(second) if "-m conformance" in step.get("run", ""))
    parsed(run.split()[3:])
    (kept,) = (step for step in steps(second) if "upload-artifact" in step.get("uses", ""))
    assert kept["if"] == "always()"
    assert kept["with"]["path"].split() == ["conformance.xml", "badge.json"]
    assert {"conformance.xml", "badge.json"} <= set(run.split())


def action() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: the action is read with it")
    found: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    return found


@BASH
@pytest.mark.parametrize("given", ["--peer port.py --case window*", "check dump --ckpt tiny"])
@pytest.mark.parametrize("status", [0, 1, 3])
def test_the_action_s_steps_run_and_fail_with_the_verdict(tmp_path: Path, given: str, status: int) -> None:
    """With a `python` of our own, which writes down how it was called, in a folder where a pattern would match."""
    install, judge, keep = action()["runs"]["steps"]
    (program := tmp_path / "python").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >> "$CALLED"\nexit {status}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "window.txt").write_text("")
    given_to = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "CALLED": str(tmp_path / "called"),
        "ARGUMENTS": given,
        "RUNNER_TEMP": str(tmp_path / "temp"),
        "GITHUB_ACTION_PATH": str(ACTION.parent),
    }
    assert judge["env"] == {"ARGUMENTS": "${{ inputs.arguments }}"}, "never pasted into the script"
    ended = subprocess.run(["/bin/bash", "-e", "-c", judge["run"]], cwd=tmp_path, env=given_to, check=False)
    assert ended.returncode == status
    called = (tmp_path / "called").read_text().splitlines()
    assert called[:2] == ["-m", "conformance"]
    assert called[2 : 2 + len(given.split())] == given.split()
    parsed(called[2:])
    reports = Path(given_to["RUNNER_TEMP"], "conformance")
    assert {Path(called[called.index(f"--{kind}") + 1]).parent for kind in ("junit", "html", "badge")} == {reports}
    assert reports.is_dir()
    assert keep["if"] == "always()"
    assert keep["with"]["path"] == "${{ runner.temp }}/conformance"
    (tmp_path / "called").unlink()
    subprocess.run(["/bin/bash", "-e", "-c", install["run"]], cwd=tmp_path, env=given_to, check=False)
    package = (tmp_path / "called").read_text().splitlines()[-1]
    assert package.endswith("[judge]")
    assert os.path.samefile(package.removesuffix("[judge]"), ROOT)
