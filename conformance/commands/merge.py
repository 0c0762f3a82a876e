"""The command `merge`: one report and one verdict of the files that `--shard I/N --json FILE` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import options as shared
from conformance.errors import Unavailable


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what each shard wrote with --json")
    shared.outputs(parser)
    shared.progress(parser)


def main(options: argparse.Namespace) -> int:
    """Merge the files; returns the verdict's exit status. Raises UsageError where they do not fit together."""
    try:
        from conformance.commands.merged_result import merged_result
        from conformance.commands.run import reported
        from conformance.report import files
    except ImportError as error:
        raise Unavailable(f'{error.name} is not installed: pip install "t5g2ref[judge]"') from error
    outputs = files.chosen(options)
    files.check(outputs)
    result = merged_result(options.files, options.known, options.command_line, progress=not options.no_progress)
    return reported(result, outputs, detail=options.detail)
