"""Describe a checkpoint, generate with it, or see it at work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from t5g2ref.backend import BackendError
from t5g2ref.checkpoint.folder import WeightsError
from t5g2ref.commands import atlas, describe, generate
from t5g2ref.config import ConfigError
from t5g2ref.notes import noted
from t5g2ref.streams import OutputError, stopped

EXAMPLES = """\
examples
  python -m t5g2ref describe 270m                      geometry and parameters of a released size
  python -m t5g2ref describe FOLDER --taps             every named value of the model and its shape
  python -m t5g2ref generate                           the bundled demo adds the digits of two pictures
  python -m t5g2ref generate --prompt "add forty-seven and thirty-eight"      that demo again
  python -m t5g2ref generate tiny --ids 5,17,42        weights without a tokenizer: give ids
  python -m t5g2ref generate 270m --prompt "..."       the released: $T5G2REF_270M, the Hub's cache or a download
  python -m t5g2ref generate FOLDER --prompt "Describe <start_of_image> briefly." --image cat.png
  python -m t5g2ref generate FOLDER --prompt "..." --backend cupy --dtype bfloat16       on the first CUDA device
  python -m t5g2ref atlas --html page.html             a page of values, masks and attention on that example
  python -m t5g2ref generate --help                    sampling, beams, where an answer ends, JSON
"""
OUT_OF_MEMORY = "out of memory; give a smaller checkpoint, picture or text, or a smaller --dtype"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m t5g2ref", description=__doc__, epilog=EXAMPLES, formatter_class=form)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    describe.add(commands)
    generate.add(commands)
    atlas.add(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 2 with a message for bad input. OutputError where nobody reads any more."""
    options = parser().parse_args(arguments)
    try:
        with _notes_shown():
            status: int = options.run(options)
        sys.stdout.flush()
        return status
    except (BackendError, ConfigError, WeightsError, ValueError, OSError, ImportError, MemoryError) as error:
        if stopped(error) or isinstance(error, OutputError):
            raise
        print(f"t5g2ref: {_said(error)}", file=sys.stderr)
        return 2


def _said(error: Exception) -> str:
    """The error in words: of a file its name, and what is wrong with it."""
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def _notes_shown() -> Iterator[None]:
    """Notes made inside go to standard error at the end, a line each. What is refused has its one line alone."""
    notes: list[str] = []
    with noted(notes):
        yield
    for text in notes:
        print(f"t5g2ref: note: {text}", file=sys.stderr)
