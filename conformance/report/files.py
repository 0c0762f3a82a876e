"""The files of a report: JSON, JUnit and HTML, all from one document."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from conformance.errors import CheckpointError, PeerUnavailable
from conformance.report.document_write import as_json
from conformance.report.result import Result

RENDERERS = {"junit": "conformance.report.junit", "html": "conformance.report.html.page"}


def check(options: argparse.Namespace) -> None:
    """What would fail at the end of a long run fails before it: CheckpointError for files that cannot be,
    PeerUnavailable where a package that writes them is missing."""
    asked = _asked(options)
    for name, path in asked.items():
        check_writable(f"--{name}", path)
    if len({path.resolve() for path in asked.values()}) < len(asked):
        raise CheckpointError(f"--{' and --'.join(asked)} name one file; give each its own")
    for name in set(asked) - {"json"}:
        try:
            importlib.import_module(RENDERERS[name])
        except ImportError as error:
            raise PeerUnavailable(f'--{name}: {error.name} is not installed: pip install "t5g2ref[judge]"') from error


def write(result: Result, options: argparse.Namespace) -> None:
    """The files that were asked for. OSError, which names the file."""
    asked = _asked(options)
    document = as_json(result) if asked else ""
    for name, path in asked.items():
        text = document + "\n"
        if name != "json":
            text = importlib.import_module(RENDERERS[name]).render(json.loads(document))
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OSError(f"--{name} {path}: cannot be written: {error.strerror}") from error


def _asked(options: argparse.Namespace) -> dict[str, Path]:
    return {name: path for name in FILES if (path := getattr(options, name, None)) is not None}


FILES = {
    "json": "write everything that was found",
    "junit": "the same for a CI system",
    "html": "the same as one page, plots and masks included",
}


def check_writable(option: str, path: Path | None) -> None:
    """CheckpointError where a file that is to be written at the end of a long run could not be."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise CheckpointError(f"{option} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise CheckpointError(f"{option} {path}: this is a folder; name a file")
