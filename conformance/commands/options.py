"""Options that several commands have, each said once."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Iterable
from pathlib import Path

from conformance.errors import UsageError
from conformance.peers.protocol import TIMEOUT
from conformance.report.files import FILES

BACKEND = """\
where truth and controls are computed and compared: numpy (default), or cupy, a CUDA device (cupy:1 the second one),
where peers run on the device too"""
KNOWN = "deviations that are known, with reason and link (TOML; see `explain known`): shown, and no failure"
LANES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # beside "exact"


def checkpoint(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint. Its default is set by `defaults`, here and below: one given to an option of the command
    `run` would undo what was said before that word."""
    parser.add_argument("--ckpt", help="tiny, 270m, 1b, 4b, a folder, or a Hub id (default: tiny)")
    parser.add_argument("--synthetic", action="store_true", help="seeded weights at the geometry that --ckpt names")
    parser.add_argument(
        "--calm", action="store_true", help="with --synthetic: no massive activation (1e5), which float16 cannot hold"
    )


def cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", action="append", metavar="GLOB", help="only cases whose name matches; repeatable")


def backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", metavar="NAME", help=BACKEND)


def outputs(parser: argparse.ArgumentParser) -> None:
    """What is shown of a judgement, and the files that are made of it."""
    parser.add_argument("--detail", action="store_true", help="print every tap of every case")
    parser.add_argument("--known", type=Path, metavar="FILE", help=KNOWN)
    for name, what in FILES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)


def timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help=f"for each answer of a process: peer (default: {TIMEOUT:g})"
    )


def progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def defaults(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(ckpt="tiny", backend="numpy", timeout=TIMEOUT)


def check_cases(patterns: Iterable[str], known: Iterable[str]) -> None:
    """UsageError for a pattern that no case's name matches."""
    names = list(dict.fromkeys(known))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UsageError(f"--case {pattern}: no case matches; there are: {', '.join(names)}")
