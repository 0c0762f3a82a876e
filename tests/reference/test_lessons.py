"""Lessons: every number on a page is what its program shows, and the notebook is the page."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import ROOT, tool

LESSONS = ROOT / "t5g2ref" / "lessons"
PAGES = sorted(LESSONS.glob("*.md"))


@pytest.fixture(autouse=True)
def printing() -> Any:
    """A lesson says how its numbers are printed; the other tests keep theirs."""
    with np.printoptions():
        yield


MAKER = tool("make_notebook")


def test_there_is_one() -> None:
    assert [page.stem for page in PAGES] == ["merged_attention"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_numbers_are_right(page: Path) -> None:
    found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert found.failed == 0
    assert found.attempted > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_notebook_is_the_page(page: Path) -> None:
    """`python tools/make_notebook.py` makes it."""
    text = page.read_text(encoding="utf-8")
    assert page.with_suffix(".ipynb").read_text(encoding="utf-8") == MAKER.notebook(text)
    told = "".join("".join(cell["source"]) for cell in MAKER.cells(text) if cell["cell_type"] == "markdown")
    assert "".join(told.split()) == "".join(MAKER.BLOCK.sub("", text).split())


def shown(source: str, names: dict[str, Any]) -> str:
    """What a cell shows: all that it prints, and its last value."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for statement in ast.parse(source).body:
            exec(compile(ast.Interactive([statement]), "cell", "single"), names)
    return out.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_notebook_runs(page: Path) -> None:
    names: dict[str, Any] = {}
    cells = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    programs = [cell for cell in cells if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in programs) >= 7
    for cell in programs:
        wanted = "".join("".join(output.get("text") or output["data"]["text/plain"]) for output in cell["outputs"])
        assert shown("".join(cell["source"]), names).strip() == wanted.strip()


def test_a_wrong_number_is_found(tmp_path: Path) -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert text.count("0.307, 0.584") == 1
    (wrong := tmp_path / "wrong.md").write_text(text.replace("0.307, 0.584", "0.307, 0.585"), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        assert doctest.testfile(str(wrong), module_relative=False, encoding="utf-8").failed == 1
