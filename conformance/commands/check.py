"""The command `check`: a dump that any program wrote, judged as a peer is."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import options as shared
from conformance.commands.options import LANES
from conformance.errors import PeerUnavailable
from conformance.peers.folder import create
from t5g2ref.backend import find


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the dump: manifest.json and safetensors")
    shared.checkpoint(parser)
    shared.cases(parser)
    shared.backend(parser)
    shared.outputs(parser)
    shared.progress(parser)
    shared.defaults(parser)


def main(options: argparse.Namespace) -> int:
    """Judge the dump; returns the exit status of the verdict. PeerUnavailable for a dump that is none."""
    peer = create(options.folder)
    try:
        from conformance.commands.run import judge_peers
    except ImportError as error:
        raise PeerUnavailable(f'{error.name} is not installed: pip install "t5g2ref[judge]"') from error
    options.lane = [
        lane for lane, dtype in LANES.items() if dtype == peer.dtype
    ]  # not the exact one: a dump cannot be probed
    return judge_peers([peer], options, find(options.backend))
