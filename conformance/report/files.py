"""The files of a report: JSON, JUnit and HTML, all from one document."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

from conformance.errors import Unavailable, UsageError
from conformance.report.document_write import as_json
from conformance.report.result import Result

RENDERERS = {"junit": "conformance.report.junit", "html": "conformance.report.html.page"}


def check(outputs: Mapping[str, Path]) -> None:
    """What would fail at the end of a long run fails before it: UsageError for files that cannot be,
    Unavailable where a package that writes them is missing."""
    for name, path in outputs.items():
        check_writable(f"--{name}", path)
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise UsageError(f"--{' and --'.join(outputs)} name one file; give each its own")
    for name in set(outputs) - {"json"}:
        try:
            importlib.import_module(RENDERERS[name])
        except ImportError as error:
            raise Unavailable(f'--{name}: {error.name} is not installed: pip install "t5g2ref[judge]"') from error


def write(result: Result, outputs: Mapping[str, Path]) -> None:
    """The files that were asked for. OSError, which names the file."""
    document = as_json(result) if outputs else ""
    for name, path in outputs.items():
        text = document + "\n"
        if name != "json":
            text = importlib.import_module(RENDERERS[name]).render(json.loads(document))
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OSError(f"--{name} {path}: cannot be written: {error.strerror}") from error


FILES = {
    "json": "write everything that was found",
    "junit": "the same for a CI system",
    "html": "the same as one page, plots and masks included",
}


def check_writable(option: str, path: Path | None) -> None:
    """UsageError where a file that is to be written at the end of a long run could not be."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{option} {path}: this is a folder; name a file")
