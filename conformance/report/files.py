"""Writes the files of a report: JSON, JUnit, HTML, Markdown and a badge, all from one document."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from conformance.errors import Unavailable, UsageError
from conformance.report.document_write import as_json
from conformance.report.result import Result
from t5g2ref.files import in_the_way, write_text

RENDERERS = {
    "junit": "conformance.report.junit",
    "html": "conformance.report.html.page",
    "markdown": "conformance.report.html.markdown",
    "badge": "conformance.report.badge",
}


def chosen(options: argparse.Namespace) -> dict[str, Path]:
    """Kind of file → its path, of those that were asked for."""
    return {kind: path for kind in FILES if (path := getattr(options, kind)) is not None}


def check(outputs: Mapping[str, Path]) -> None:
    """Check before a long run that its files can be written at the end.

    Raises UsageError for a path that will not do, and Unavailable where a package is missing.
    """
    for name, path in outputs.items():
        check_writable(f"--{name}", path)
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise UsageError(f"--{' and --'.join(outputs)} name the same file; give each its own")
    for name in set(outputs) - {"json"}:
        try:
            importlib.import_module(RENDERERS[name])
        except ImportError as error:
            raise Unavailable(f'--{name}: {error.name} is not installed: pip install "t5g2ref[judge]"') from error


def write(result: Result, outputs: Mapping[str, Path]) -> None:
    """Write the files that were asked for. Raises OSError, which names one that failed, once all have been tried."""
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
    "json": "write everything that was found, as JSON",
    "junit": "write it as JUnit XML, for a CI system",
    "html": "write it as one page, with plots and masks",
    "markdown": "write what deviates for an issue, under 4 KB",
    "badge": "write the verdict as a badge: JSON for shields.io's endpoint",
}


def check_writable(option: str, path: Path | None) -> None:
    """Raises UsageError for a path where no file can be written when the run ends."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    if kind := in_the_way(path):
        raise UsageError(f"{option} {path}: this is {kind}; name a file")
    if not path.is_char_device() and not os.access(path.resolve().parent, os.W_OK):
        raise UsageError(f"{option} {path}: nothing may be written into {path.resolve().parent}")
