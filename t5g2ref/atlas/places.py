"""Where code is: file, line, docstring and text, found by looking while it runs."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import t5g2ref

ROOT = Path(t5g2ref.__file__).resolve().parent.parent
_SKIPPED = ("trace.py", "atlas")  # what stands between the model and the sink


@dataclass(frozen=True, order=True)
class Place:
    """A line of a function.

    Args:
        file: relative to the repository, as t5g2ref/attention.py.
        first: the line that the function begins at.
        line: the line in question.
        name: the function's.
    """

    file: str
    first: int
    line: int
    name: str

    @property
    def anchor(self) -> str:
        """The id of the line on the page."""
        return anchor(self.file, self.line)

    @property
    def said(self) -> str:
        """As a compiler says it: t5g2ref/attention.py:88."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Source:
    """A function's docstring and lines."""

    file: str
    first: int
    name: str
    fact: str
    lines: tuple[str, ...]

    @property
    def numbered(self) -> list[tuple[int, str, str]]:
        """(number, id on the page, text) of every line but those of the docstring, which is shown by itself."""
        every = [(n, anchor(self.file, n), text) for n, text in enumerate(self.lines, self.first)]
        (function,) = ast.parse(textwrap.dedent("\n".join(self.lines))).body
        assert isinstance(function, ast.FunctionDef)
        if not ast.get_docstring(function):
            return every
        told = function.body[0]
        return every[: told.lineno - 1] + every[told.end_lineno :]


@dataclass(frozen=True)
class File:
    """A file's docstring and those of its functions that are shown."""

    name: str
    fact: str
    sources: tuple[Source, ...]


def summary(function: Callable[..., Any]) -> str:
    """The first paragraph of a function's documentation."""
    return " ".join((inspect.getdoc(inspect.unwrap(function)) or "").split("\n\n")[0].split())


def anchor(file: str, line: int) -> str:
    """The id of a line on the page."""
    return f"code-{file.removeprefix('t5g2ref/').removesuffix('.py').replace('/', '-')}-{line}"


class Places:
    """Collects the functions that were met."""

    def __init__(self) -> None:
        self._met: dict[tuple[str, int], Any] = {}

    def of(self, function: Callable[..., Any]) -> Place:
        """Where a function begins; a decorated one is its definition."""
        plain = inspect.unwrap(function)
        first = inspect.getsourcelines(plain)[1]
        return self._kept(plain, first + _decorators(plain), first)

    def calling(self) -> Place:
        """Where the model is that called the sink that calls this."""
        frame = sys._getframe(1)
        while frame.f_back is not None and _between(frame):
            frame = frame.f_back
        return self._kept(_function(frame), frame.f_lineno, frame.f_code.co_firstlineno)

    def files(self) -> list[File]:
        """All that was met, by file and line."""
        found: dict[str, list[Source]] = {}
        for (file, first), function in sorted(self._met.items(), key=lambda item: item[0]):
            text = inspect.getsource(function).rstrip().splitlines()
            fact = inspect.getdoc(function) or ""
            found.setdefault(file, []).append(Source(file, first, function.__qualname__, fact, tuple(text)))
        return [File(name, _page(sources, self._met), tuple(sources)) for name, sources in found.items()]

    def _kept(self, function: Any, line: int, first: int) -> Place:
        path = Path(inspect.getsourcefile(function) or "").resolve()
        file = path.relative_to(ROOT).as_posix()
        self._met[file, first] = function
        return Place(file, first, line, function.__qualname__)


def _page(sources: Iterable[Source], met: dict[tuple[str, int], Any]) -> str:
    """The docstring of the file that the sources are from."""
    first = next(iter(sources))
    module = inspect.getmodule(met[first.file, first.first])
    return inspect.getdoc(module) or "" if module else ""


def _decorators(function: Any) -> int:
    """How many lines stand before `def`."""
    lines = inspect.getsourcelines(function)[0]
    return next(n for n, text in enumerate(lines) if text.lstrip().startswith("def "))


def _between(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    return path.name in _SKIPPED or path.parent.name in _SKIPPED or "<" in frame.f_code.co_name


def _function(frame: FrameType) -> Any:
    """The function whose frame this is, by its name."""
    found: Any = None
    for part in frame.f_code.co_qualname.split("."):
        found = frame.f_globals[part] if found is None else getattr(found, part)
    return inspect.unwrap(found)
