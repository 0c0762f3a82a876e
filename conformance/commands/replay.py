"""The command `replay`: judges the log-probabilities that a server gave, from a file of prompts and answers."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from conformance.checkpoints import BUNDLED
from conformance.commands import options as shared
from conformance.commands.options import LANES
from conformance.errors import Unavailable
from conformance.exchange import replay
from conformance.peers.replay import ReplayPeer, cases

FILE = """\
JSON lines: {"prompt_ids": [...], "output_ids": [...], "log_probs": [...]}, and where there are more than the output's
own "top_ids" and "top_log_probs", a list for each position; see `explain replay`"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help=FILE)
    lane = "the precision in which the server says that it runs (default: bf16)"
    parser.add_argument("--lane", choices=LANES, default="bf16", help=lane)
    shared.checkpoint(parser)
    shared.cases(parser)
    shared.backend(parser)
    shared.outputs(parser)
    shared.progress(parser)
    shared.defaults(parser)


def main(options: argparse.Namespace) -> int:
    """Judge the file; returns the verdict's exit status. Raises UsageError for a file that is no replay."""
    lines = replay.read(options.file)
    checkpoint = options.ckpt if options.ckpt in BUNDLED and not options.synthetic else ""
    peer = ReplayPeer(lines, f"replay:{options.file.name}", LANES[options.lane], checkpoint)
    try:
        from conformance.commands.request import of_replay
        from conformance.commands.run import judge_peers
    except ImportError as error:
        raise Unavailable(f'{error.name} is not installed: pip install "t5g2ref[judge]"') from error
    return judge_peers(of_replay(options, peer, partial(cases, lines)))
