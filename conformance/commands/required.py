"""The option `--require`: what the verdict has to cover."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

from conformance.cases.abilities import TEXT, Required
from conformance.errors import UsageError
from t5g2ref.config.fields import short
from t5g2ref.files import opened

MAX_BYTES = 1 << 16
HELP = """\
what the verdict has to cover: text (every case of text alone that the peer can do), or a TOML file with
cases = ["short", "window"]; other cases are not run, and the verdict says so. Not beside --case"""


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--require", metavar="WHAT", help=HELP)


def required(given: argparse.Namespace) -> Required | None:
    """What was asked for; None for everything. Raises UsageError for a file that cannot be used, or beside --case."""
    what: str | None = getattr(given, "require", None)
    if what is None:
        return None
    if given.case:
        raise UsageError("--require says which cases are run, and so does --case: give one of them")
    return required_of(what)


def required_of(what: str) -> Required:
    """What "text", or a TOML file, asks for. Raises UsageError for a file that cannot be used."""
    return Required(None, TEXT) if what == TEXT else Required(_names(what), what)


def _names(path: str) -> tuple[str, ...]:
    """The names in the file, each once."""
    where = f"--require {path}"
    try:
        with opened(Path(path)) as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror}; give text, or a TOML file") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where}: larger than {MAX_BYTES} bytes")
    try:
        raw = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not TOML: {short(str(error))[1:-1]}") from error
    names = raw.get("cases")
    if set(raw) != {"cases"} or not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UsageError(f'{where}: has {short(raw)}, expected cases = ["short", "window"] and nothing else')
    return tuple(dict.fromkeys(names))
