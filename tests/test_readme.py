"""The README is true: short, its Python runs, its commands parse, and what it points to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="needs rich: the commands' options are read")

from conformance.__main__ import parser

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(TEXT.split()) <= 1300


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(block, {})
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == re.findall(r"# (\(\d[^)]*\))", block), "what the comments say is what is printed"


COMMANDS = [c.split("  ")[0] for c in re.findall(r"python -m conformance((?: [^`#\n&]*)?)(?:`|#|\n)", TEXT)]


@pytest.mark.parametrize("given", COMMANDS)
def test_its_commands_parse(given: str) -> None:
    parser().parse_args(shlex.split(given))


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)|`((?:[\w.]+/)+[\w.]+)`", TEXT))), ids=str)
def test_what_it_points_to_is_there(path: tuple[str, str]) -> None:
    assert (ROOT / (path[0] or path[1])).exists()
