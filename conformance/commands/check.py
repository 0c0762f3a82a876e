"""The command `check`: judges a dump, which any program may have written, as a peer."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import options as shared
from conformance.commands import required
from conformance.errors import Unavailable
from conformance.peers.folder import create


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the dump: manifest.json and safetensors")
    shared.checkpoint(parser)
    shared.cases(parser)
    required.add_option(parser)
    shared.backend(parser)
    shared.outputs(parser)
    shared.progress(parser)
    shared.defaults(parser)


def main(options: argparse.Namespace) -> int:
    """Judge the dump; returns the verdict's exit status. Raises PeerUnavailable for a folder that is no dump."""
    peer = create(options.folder)
    try:
        from conformance.commands.request import of_dump
        from conformance.commands.run import judge_peers
    except ImportError as error:
        raise Unavailable(f'{error.name} is not installed: pip install "t5g2ref[judge]"') from error
    return judge_peers(of_dump(options, peer))
