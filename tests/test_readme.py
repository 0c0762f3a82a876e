"""The README and the page of figures: of a size to be read, their program runs, their paths and commands exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ROOT

PUBLISHED = ROOT / "conformance" / "published"
README, MEASURED = ROOT / "README.md", PUBLISHED / "measured.md"
WORDS = 1300
FIRST = (
    'pip install -e ".[conformance]" && python -m conformance',
    'pip install -e ".[test]" && python -m pytest -n auto',
)
PATH = re.compile(r"(?:[\w.-]+/)+(?:[\w.-]+\.\w+)?|[\w.-]+/[\w./-]*\.(?:py|md|cu|svg)")
EVERY = [README, MEASURED, PUBLISHED / "vectors.md", PUBLISHED / "ci.md"]
PAGES = pytest.mark.parametrize("page", EVERY, ids=lambda path: path.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def quoted(page: Path) -> list[str]:
    """What stands in backticks, each on one line."""
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The arguments of every `python -m PROGRAM …`, in blocks and in backticks."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    for line in [*lines, *quoted(page)]:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:3] == ["python", "-m", program]:
                yield words[3:]


def anchors(page: Path) -> set[str]:
    """Of every heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_it_can_be_read_at_one_sitting() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= WORDS


def test_the_two_commands_come_first() -> None:
    lines = blocks(README, "sh")[0].splitlines()
    assert [line.split("  #")[0].rstrip() for line in lines] == list(FIRST)


def test_the_program_says_what_stands_behind_its_lines() -> None:
    (program,) = blocks(README, "python")
    told = re.findall(r"^print\(.*  # (.+)$", program, re.MULTILINE)
    assert len(told) >= 3
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(program, str(README), "exec"), {"__name__": "readme"})
    assert out.getvalue().splitlines() == told


@PAGES
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@PAGES
def test_every_path_in_backticks_exists(page: Path) -> None:
    words = [word for text in quoted(page) for word in text.split() if PATH.fullmatch(word)]
    named = [word for word in words if word.split("/")[0] in {path.name for path in ROOT.iterdir()}]
    assert len(named) >= 3
    assert [word for word in named if not (ROOT / word).exists()] == []


@PAGES
def test_every_command_of_the_judge_parses(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="needs rich: without it the judge's commands have no options")
    from conformance.commands.command_line import parser

    found = list(commands(page, "conformance"))
    assert len(found) >= 3
    for arguments in found:
        try:
            parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"python -m conformance {shlex.join(arguments)}: {capsys.readouterr().err}")


def test_what_is_no_python_comes_with_the_package() -> None:
    import tomllib

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    checkers, schemas = (ROOT / "conformance" / folder for folder in ("examples/vectors", "report/schema"))
    wanted = [*EVERY[1:], *checkers.iterdir(), *schemas.iterdir()]
    assert len(wanted) >= 8
    assert not [
        path for path in wanted if not any(path.match(f"conformance/{pattern}") for pattern in setup["conformance"])
    ]
