"""Options that several commands share, each defined once."""

from __future__ import annotations

import argparse
import fnmatch
import os
from collections.abc import Iterable
from pathlib import Path

from conformance.cases.each_kind import ALL, EACH_KIND
from conformance.errors import UsageError
from conformance.peers.protocol import TIMEOUT
from conformance.report.files import FILES
from conformance.sweep.engine import Engine

BACKEND = """\
where truth and controls are computed: numpy (default), or cupy, a CUDA device (cupy:1 is the second one); with cupy,
peers run on the device too; cupy-fast has faster kernels, whose sums and roundings are no definition's"""
CKPT = """\
tiny, tiny-even, tiny-released, tiny-encoder, demo, 270m, 1b, 4b, a folder, a .safetensors file, or
OWNER/REPO[@REVISION] on the Hub (default: tiny; of engines that run released settings alone: tiny-released, or of
encoders alone: tiny-encoder)"""
KNOWN = "known deviations, which are shown and do not fail: a TOML file with reasons and links; see `explain known`"
STREAM = """\
read or make weights as a layer is entered, in truth, controls and peer alike, so that memory does not grow with depth;
by itself where memory would not do otherwise"""
LAYERS = """\
all (default), or each-kind: the checkpoint is cut to its first sliding and first full layer of each text stack and the
first of the tower, with their own weights, which shows real sizes in little time; the verdict says so"""
LANES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # beside "exact" and "generate"


def checkpoint(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint to judge on.

    `defaults` sets the defaults, here and below. A default of the subcommand `run` would undo an option that was given
    before that word.
    """
    parser.add_argument("--ckpt", help=CKPT)
    parser.add_argument("--synthetic", action="store_true", help="seeded weights at the geometry that --ckpt names")
    parser.add_argument(
        "--calm", action="store_true", help="with --synthetic: no massive activation (1e5), which float16 cannot hold"
    )


def layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", choices=(ALL, EACH_KIND), help=LAYERS)


def stream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, help=STREAM)


def cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", action="append", metavar="GLOB", help="only cases whose name matches; repeatable")


def rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", action="store_true", help="give every batch a row at a time, as a case NAME-rows")


def backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", metavar="NAME", help=BACKEND)


def outputs(parser: argparse.ArgumentParser) -> None:
    """What is printed of the judgements, and which files are written."""
    parser.add_argument("--detail", action="store_true", help="print every tap of every case")
    parser.add_argument("--known", type=Path, metavar="FILE", help=KNOWN)
    for name, what in FILES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)


def shares(parser: argparse.ArgumentParser) -> None:
    """Runs that are cut in parts: over machines, or by an interruption."""
    parser.add_argument(
        "--shard", metavar="I/N", help="make the I-th of N parts of the comparisons; `merge` makes one report of them"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="keep comparisons there as they end, and make none that it holds"
    )


def timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help=f"for each answer of a process: peer (default: {TIMEOUT:g})"
    )


def jobs(parser: argparse.ArgumentParser, usual: str) -> None:
    parser.add_argument("--jobs", type=int, metavar="N", help=f"processes (default: {usual})")


CLUSTER = """\
judge on the workers of the Dask scheduler at ADDRESS, such as tcp://host:8786 (extra `cluster`); each thread of a
worker has a process of its own, --jobs of them at most. Whoever reaches a scheduler can run code on its workers, and
they on this machine: trust it as a machine of your own"""


def cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cluster", metavar="ADDRESS", help=CLUSTER)


def scheduler(options: argparse.Namespace) -> str:
    """What `--cluster` asks for; "" for nothing. Raises UsageError for an empty address."""
    address: str | None = getattr(options, "cluster", None)
    if address is not None and not address.strip():
        raise UsageError("--cluster: expected the address of a Dask scheduler, such as tcp://host:8786")
    return address or ""


def processes(options: argparse.Namespace) -> int | None:
    """What `--jobs` asks for. Raises UsageError for less than one."""
    wanted: int | None = getattr(options, "jobs", None)
    if wanted is not None and wanted < 1:
        raise UsageError(f"--jobs {wanted}: expected at least 1")
    return wanted


def engine(options: argparse.Namespace, usual: int | None = None) -> Engine:
    """Where `--jobs` and `--cluster` have jobs done.

    Args:
        usual: how many processes of this machine, unasked; None for one a core.
    """
    if address := scheduler(options):
        return Engine(processes(options), address)
    return Engine(processes(options) or usual or os.cpu_count() or 1)


def progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def defaults(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(ckpt="tiny", backend="numpy", timeout=TIMEOUT)


def check_cases(patterns: Iterable[str], known: Iterable[str]) -> None:
    """Raises UsageError for a pattern that matches no case's name."""
    names = list(dict.fromkeys(known))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UsageError(f"--case {pattern}: no case matches; there are: {', '.join(names)}")
