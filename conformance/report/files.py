"""The files of a report: JSON, JUnit and HTML, all from one document."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from conformance.errors import Unavailable, UsageError
from conformance.report.document_write import as_json
from conformance.report.result import Result
from t5g2ref.files import in_the_way, write_text

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
    """The files that were asked for. OSError names one that could not be written, once the others have been."""
    document, failed = as_json(result) if outputs else "", list[OSError]()
    for name, path in outputs.items():
        text = document + "\n"
        if name != "json":
            text = importlib.import_module(RENDERERS[name]).render(json.loads(document))
        try:
            write_one(f"--{name}", path, text)
        except OSError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def write_one(option: str, path: Path, text: str) -> None:
    """One file, whole or not at all: an earlier one stays where this fails. OSError, which names the option."""
    try:
        write_text(path, text)
    except OSError as error:
        raise OSError(f"{option} {path}: cannot be written: {error.strerror}") from error


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
    if kind := in_the_way(path):
        raise UsageError(f"{option} {path}: this is {kind}; name a file")
    if not path.is_char_device() and not os.access(path.resolve().parent, os.W_OK):
        raise UsageError(f"{option} {path}: nothing may be written into {path.resolve().parent}")
