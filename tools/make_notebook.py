"""Makes the notebook of a lesson from its page: `python tools/make_notebook.py`. The page is the one source."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

LESSONS = Path(__file__).resolve().parents[1] / "t5g2ref" / "lessons"
BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def cells(page: str) -> list[dict[str, Any]]:
    """The page's text and its programs, in order. A program is cut behind each line that shows something."""
    found: list[dict[str, Any]] = []
    for place, part in enumerate(BLOCK.split(page)):
        if place % 2:
            found += _programs(part)
        elif part.strip():
            found.append({"cell_type": "markdown", "metadata": {}, "source": _lines(part.strip())})
    return [{"id": f"cell-{number}", **cell} for number, cell in enumerate(found)]


def _programs(block: str) -> list[dict[str, Any]]:
    found, source = [], ""
    for example in doctest.DocTestParser().get_examples(block):
        source += example.source
        if example.want:
            found.append(_program(source, example.want))
            source = ""
    return found + ([_program(source, "")] if source else [])


def _program(source: str, shown: str) -> dict[str, Any]:
    outputs = []
    if shown and source.splitlines()[-1].startswith("print("):
        outputs = [{"name": "stdout", "output_type": "stream", "text": _lines(shown)}]
    elif shown:
        data = {"text/plain": _lines(shown.rstrip("\n"))}
        outputs = [{"data": data, "execution_count": None, "metadata": {}, "output_type": "execute_result"}]
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": outputs,
        "source": _lines(source.rstrip("\n")),
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def notebook(page: str) -> str:
    """The notebook as a file holds it."""
    made = {"cells": cells(page), "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    for page in sorted(LESSONS.glob("*.md")):
        page.with_suffix(".ipynb").write_text(notebook(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
