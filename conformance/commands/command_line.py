"""The command line: its options, its help, and the exit status whatever happens."""

from __future__ import annotations

import argparse
import importlib
import io
import shlex
import sys
import traceback
from contextlib import suppress
from typing import Any

from conformance.commands import options as shared
from conformance.commands import required
from conformance.commands.options import LANES
from conformance.errors import Unavailable, UsageError
from conformance.measure.limits import DEFECT
from t5g2ref.backend import BackendError
from t5g2ref.checkpoint.find import variable
from t5g2ref.config import ConfigError
from t5g2ref.streams import OutputError, stopped

CONFORMS, DEVIATES, USAGE, INCOMPLETE = 0, 1, 2, 3
JUDGING = (None, "run", "check", "merge", "replay", "selftest")  # commands that end with a verdict

HELP = f"""\
Hold an implementation of T5Gemma 2 against the float64 reference, tap by tap, and say who is wrong
and where.

With no arguments: the installed transformers (eager and sdpa attention, in float32 and bfloat16) on
the bundled checkpoint. Every value is judged by a ratio: the peer's distance from the float64 truth
over the distance that the same mathematics in the peer's own precision has. 1 is as good as it gets;
in float32 a real defect is at {DEFECT:g} or far above, in bfloat16 it is found by worst-case bounds and by
its pattern. `explain` says how to read all of it.

exit status   0 CONFORMS   1 DEVIATES   2 bad usage or environment   3 INCOMPLETE
              130 Ctrl-C and 143 SIGTERM, where no verdict was to come
"""

EXAMPLES = f"""\
examples
  python -m conformance                             judge transformers on the tiny checkpoint
  python -m conformance --case 'window*' --detail   one case, every tap's ratio
  python -m conformance --ckpt 270m --synthetic     the real geometry, seeded weights (slow: minutes)
  python -m conformance --ckpt 1b                   the real weights: ${variable("1b")}, cache or download
  python -m conformance --backend cupy              truth, controls and transformers on a CUDA device
  python -m conformance --peer t5g2ref:cupy:bfloat16  the reference's own CUDA path against NumPy's truth
  python -m conformance --peer port.py:create       a port in a Python file
  python -m conformance --lane bf16 --html report.html  one lane, and a page to paste into a bug report
  python -m conformance --shard 1/4 --json 1.json   a quarter, on any machine; then: merge *.json
  python -m conformance --resume kept.jsonl         what ends is kept there, and an interrupted run goes on
  python -m conformance --cluster tcp://host:8786   on the workers of a Dask scheduler
  python -m conformance selftest                    the judge judged: every known fault must be found
  python -m conformance export DIR                  the cases as files, for a port in any language
  python -m conformance export --vectors DIR        test vectors, for a port that tests itself
  python -m conformance check DIR                   judge what that port wrote
  python -m conformance replay FILE --ckpt 1b       judge what a server answered: ids and log-probabilities
  python -m conformance list cases                  what there is: cases, taps, faults, checkpoints, peers
"""


LANE = """\
exact (weights, embedding rows, masks by probing: bit for bit), fp32, bf16, fp16, generate (the peer's own generation,
in float32); repeatable; default: all but fp16. A --peer whose name has no type runs in every lane that is named"""

ONCE = "run each case once; by default it is run again after other lengths, and compared bit for bit"


MODULES = {
    "selftest": ("conformance.commands.selftest", "inject every known fault and demand that each is found where it is"),
    "export": ("conformance.commands.export", "write the cases as files, for a program in any language"),
    "check": ("conformance.commands.check", "judge a folder that such a program wrote"),
    "merge": ("conformance.commands.merge", "one report and one verdict of what every --shard wrote"),
    "replay": ("conformance.commands.replay", "judge log-probabilities that a server gave for a file of prompts"),
    "explain": (
        "conformance.commands.explain",
        "what every number means, and how to get from a red row to a line of code",
    ),
}


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m conformance", description=HELP, epilog=EXAMPLES, formatter_class=form)
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="judge peers (the default)",
        description=HELP,
        formatter_class=form,
        argument_default=argparse.SUPPRESS,  # a default here would undo an option given before the word `run`
    )
    for target in (top, run):
        _run_options(target)
    shared.defaults(top)
    top.set_defaults(ckpt=None)  # `run` takes that which suits the peers
    for name, (module, what) in MODULES.items():
        command = commands.add_parser(name, help=what, description=what, formatter_class=form)
        with suppress(Unavailable):  # said when the command is run
            _module(name, module).add_options(command)
    listing = commands.add_parser("list", help="what there is to choose from")
    listing.add_argument("what", choices=("cases", "taps", "faults", "checkpoints", "peers"))
    return top


def _module(name: str, module: str) -> Any:
    """A command's module; Unavailable where a package that it needs is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f'{name}: {error.name} is not installed: pip install "t5g2ref[judge]"') from error


QUICK = "for an edit-and-run loop: a few cases in float32, once, on the first checkpoint; what it cannot see is printed"


def _run_options(target: argparse.ArgumentParser) -> None:
    shared.checkpoint(target)
    default = "default: transformers, eager and sdpa"
    peer = f"a name of `list peers`, or FILE.py[:FUNCTION]; repeatable; {default}"
    target.add_argument("--peer", action="append", metavar="NAME", help=peer)
    target.add_argument("--lane", action="append", choices=("exact", *LANES, "generate"), help=LANE)
    shared.cases(target)
    shared.rows(target)
    required.add_option(target)
    shared.backend(target)
    shared.timeout(target)
    usual = "one a core for bundled checkpoints; else, and on a GPU, one, since every comparison takes memory"
    sharing = "they share one copy of the weights, if not streamed"
    shared.jobs(target, f"{usual}; {sharing}; several on one GPU run side by side by NVIDIA's MPS")
    shared.cluster(target)
    shared.shares(target)
    shared.stream(target)
    shared.layers(target)
    shared.outputs(target)
    target.add_argument("--once", action="store_true", help=ONCE)
    target.add_argument("--quick", action="store_true", help=QUICK)
    shared.progress(target)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. SystemExit for --help and bad usage, see `_guarded` for the rest."""
    given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show ‖ or √ shows a question mark
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        if given and given[0] in MODULES:  # before its options are parsed, which it could not name
            _module(given[0], MODULES[given[0]][0])
        options = parser().parse_args(given)
    except Unavailable as error:
        if stopped(error):
            raise
        print(f"conformance: {error}", file=sys.stderr)
        return USAGE
    except SystemExit:  # argparse's own: 0 after --help, 2 for what it cannot read
        raise
    except BaseException as error:
        if isinstance(error, OutputError) or stopped(error):
            raise
        return _own_error(given[0] if given and given[0] in ("list", *MODULES) else None)
    options.command_line = shlex.join(["python", "-m", "conformance", *given])
    return _guarded(options)


def _guarded(options: argparse.Namespace) -> int:
    """The command's exit status, whatever happens in it: Python's own for an error is 1, which says DEVIATES.

    KeyboardInterrupt where a command without a verdict is stopped; OutputError where nobody reads any more.
    """
    try:
        status = _command(options)
        sys.stdout.flush()
        return status
    except BaseException as error:  # SystemExit too, whose status may be 0
        if isinstance(error, OutputError):
            raise
        if stopped(error):
            return _interrupted(options.command, error)
        if isinstance(error, (UsageError, Unavailable, BackendError, ConfigError, OSError)):
            print(f"conformance: {error}", file=sys.stderr)
            return USAGE
        if isinstance(error, MemoryError):  # without a traceback, which takes memory too
            print("conformance: out of memory; give a smaller --ckpt, or fewer cases with --case", file=sys.stderr)
            return _incomplete(options.command, "out of memory")
        return _own_error(options.command)


def _own_error(command: str | None) -> int:
    """Say that the error is ours."""
    with suppress(Exception):  # what is to be shown may itself be what cannot be shown
        traceback.print_exc()
    print("conformance: the suite itself failed; this says nothing about a peer", file=sys.stderr)
    return _incomplete(command, "the suite itself failed")


def _interrupted(command: str | None, error: BaseException) -> int:
    """Raises for a command that gives no verdict."""
    if command not in JUDGING:
        raise error
    print("conformance: interrupted", file=sys.stderr)
    return _incomplete(command, "interrupted")


def _incomplete(command: str | None, why: str) -> int:
    if command in JUDGING:
        print(f"VERDICT: INCOMPLETE - {why}", flush=True)
    return INCOMPLETE


def _command(options: argparse.Namespace) -> int:
    if options.command == "list":
        from conformance.commands.listing import show

        return show(options.what)
    if options.command in MODULES:
        status: int = _module(options.command, MODULES[options.command][0]).main(options)
        return status
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        from conformance.commands.run import run
    except ImportError as error:
        raise Unavailable(f'{error.name} is not installed: pip install "t5g2ref[conformance]"') from error
    return run(options)
