"""The command `check`: a dump that any program wrote, judged as a peer is."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.dumps.peer import create
from conformance.peers import PeerUnavailable
from t5g2ref.backend import find

LANES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the dump: manifest.json and safetensors")
    parser.add_argument("--ckpt", default="tiny", help="the checkpoint that was exported, as in `run`")
    parser.add_argument("--synthetic", action="store_true", help="seeded weights at the geometry that --ckpt names")
    parser.add_argument("--calm", action="store_true", help="with --synthetic: no massive activation")
    parser.add_argument("--case", action="append", metavar="GLOB", help="only cases whose name matches; repeatable")
    parser.add_argument("--backend", default="numpy", metavar="NAME", help="where truth and controls are computed")
    parser.add_argument("--detail", action="store_true", help="print every tap of every case")
    for name, what in (("json", "everything that was found"), ("junit", "the same as JUnit"), ("html", "as a page")):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {what}")
    parser.add_argument("--known", type=Path, metavar="FILE", help="known deviations, a TOML file")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def main(options: argparse.Namespace) -> int:
    """Judge the dump; returns the exit status of the verdict. PeerUnavailable for a dump that is none."""
    peer = create(options.folder)
    try:
        from conformance.run import judge_peers
    except ImportError as error:
        raise PeerUnavailable(f'{error.name} is not installed: pip install "t5g2ref[conformance]"') from error
    options.lane = [LANES[peer.dtype]]  # not the exact one: a dump cannot be probed
    return judge_peers([peer], options, find(options.backend))
