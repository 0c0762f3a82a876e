"""The command `python -m conformance`: see `--help`."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import textwrap
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance import cases as case_list
from conformance.cases import Case
from conformance.checkpoints import BUNDLED, HUB, CheckpointError, resolve, variable
from conformance.exposure import DEFECTS, hidden
from conformance.judge import Judgement, judge
from conformance.peers import Peer, PeerUnavailable, Target, create, names
from t5g2ref.config import ConfigError

CONFORMS, DEVIATES, USAGE, INCOMPLETE = 0, 1, 2, 3

HELP = """\
Hold an implementation of T5Gemma 2 against the float64 reference, tap by tap, and say who is wrong and where.

With no arguments: the installed transformers (eager and sdpa attention, float32) on the bundled checkpoint.
Every value is judged by a ratio: the peer's distance from the float64 truth over the distance that the same
mathematics in the peer's own precision has. 1 is as good as it gets; a real defect is at 100 or far above.

exit status   0 CONFORMS   1 DEVIATES   2 bad usage or environment   3 INCOMPLETE
"""

EXAMPLES = f"""\
examples
  python -m conformance                                  judge transformers on the tiny checkpoint
  python -m conformance --case 'window*' --detail        one case, every tap's ratio
  python -m conformance --ckpt 270m --synthetic          the real geometry, seeded weights (slow: minutes)
  python -m conformance --ckpt 1b                        the real weights: ${variable("1b")}, cache or download
  python -m conformance list cases                       what there is: cases, taps, faults, checkpoints, peers
"""


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
    top.set_defaults(ckpt="tiny")
    listing = commands.add_parser("list", help="what there is to choose from")
    listing.add_argument("what", choices=("cases", "taps", "faults", "checkpoints", "peers"))
    return top


def _run_options(target: argparse.ArgumentParser) -> None:
    target.add_argument("--ckpt", help="tiny, 270m, 1b, 4b, a folder, or a Hub id (default: tiny)")
    target.add_argument("--synthetic", action="store_true", help="seeded weights at the geometry that --ckpt names")
    target.add_argument("--peer", action="append", metavar="NAME", help=f"repeatable; default: {', '.join(names())}")
    target.add_argument("--case", action="append", metavar="GLOB", help="only cases whose name matches; repeatable")
    target.add_argument("--detail", action="store_true", help="print every tap of every case")
    target.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    target.add_argument("--no-progress", action="store_true", help="no progress bar")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        status = _list(options.what) if options.command == "list" else _run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `list taps | head`: the reader has had enough, and Python must not try once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INCOMPLETE
    except (CheckpointError, PeerUnavailable, ConfigError, OSError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("conformance: interrupted", file=sys.stderr)
        print("VERDICT: INCOMPLETE - interrupted")
        return INCOMPLETE
    except Exception:  # Python's own exit status for this is 1, which says that a peer deviates
        traceback.print_exc()
        print("conformance: the suite itself failed; this says nothing about a peer", file=sys.stderr)
        print("VERDICT: INCOMPLETE - the suite itself failed")
        return INCOMPLETE


def _run(options: argparse.Namespace) -> int:
    try:
        from rich.console import Console

        from conformance import report
    except ImportError as error:
        raise PeerUnavailable(f'{error.name} is not installed: pip install "t5g2ref[conformance]"') from error
    if options.json is not None and not options.json.parent.is_dir():
        raise CheckpointError(f"--json {options.json}: there is no folder {options.json.parent}")
    if options.json is not None and options.json.is_dir():
        raise CheckpointError(f"--json {options.json}: this is a folder; name a file")
    began, console = time.perf_counter(), Console(stderr=False)
    peers = [create(name) for name in dict.fromkeys(options.peer or names())]
    with _progress(quiet=options.no_progress) as progress:
        targets = resolve(options.ckpt, synthetic=options.synthetic, progress=progress.tensors)
        plan = _plan(targets, options.case or [])
        found = _judged(peers, plan, progress)
    result = report.Result(
        judgements=found,
        exposes={case.name: case.exposes for _, case in plan},
        hidden=hidden([t.config for t in targets], _compared(plan, found)),
        versions={k: v for peer in peers for k, v in peer.versions().items()},
        selected=len(plan),
        available=sum(len(case_list.build(t.config)) for t in targets),
        seconds=time.perf_counter() - began,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        environment=report.environment(),
    )
    report.show(result, console, detail=options.detail)
    if options.json is not None:
        report.write_json(result, options.json)
    print(result.last_line())
    return result.status


def _plan(targets: list[Target], patterns: list[str]) -> list[tuple[Target, Case]]:
    plan = [(t, case) for t in targets for case in case_list.select(case_list.build(t.config), patterns)]
    if not plan:
        known = ", ".join(case.name for case in case_list.build(targets[0].config))
        raise CheckpointError(f"--case {' '.join(patterns)}: no case matches; there are: {known}")
    return plan


def _judged(peers: list[Peer], plan: list[tuple[Target, Case]], progress: Any) -> list[tuple[str, Judgement]]:
    """Every peer on every case, one model in memory at a time."""
    found = []
    progress.start(len(peers) * len(plan))
    for peer in peers:
        opened = None
        for target, case in plan:
            if opened is not target:
                peer.open(target)
                opened = target
            found.append((target.name, judge(peer, target, case, progress.say)))
            progress.step()
        peer.close()
    order = {target.name: i for i, (target, _) in enumerate(plan)}
    return sorted(found, key=lambda item: order[item[0]])


def _compared(plan: list[tuple[Target, Case]], found: list[tuple[str, Judgement]]) -> list[Case]:
    """The cases that every peer could be judged on: the others exposed nothing."""
    failed = {(target, judgement.case) for target, judgement in found if judgement.error}
    return [case for target, case in plan if (target.name, case.name) not in failed]


@contextmanager
def _progress(*, quiet: bool) -> Iterator[_Progress]:
    """A bar on standard error, only where someone watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty())
    with bar:
        yield _Progress(bar)


class _Progress:
    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("reading the checkpoint", total=None)

    def tensors(self, name: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=f"weights: {name}", completed=done, total=total)

    def start(self, total: int) -> None:
        self._bar.update(self._task, completed=0, total=total)

    def say(self, what: str) -> None:
        self._bar.update(self._task, description=what)

    def step(self) -> None:
        self._bar.advance(self._task)


def _list(what: str) -> int:
    from t5g2ref import bundled, taps
    from t5g2ref.config import Config

    config = Config.load(bundled("tiny"))
    if what == "cases":
        for case in case_list.build(config):
            ids = textwrap.wrap(" ".join(case.exposes), 25)  # 100 columns in all
            print("\n".join([f"{case.name:20} {case.title:52} {ids[0]}", *(f"{'':74}{more}" for more in ids[1:])]))
    elif what == "taps":
        for tap in taps.table(config, loss=True):
            print(f"{tap.name:62} {tap.shape:10} {'mask' if tap.exact else ''}")
    elif what == "faults":
        for defect, title in DEFECTS.items():
            print(f"{defect}  {title}")
    elif what == "checkpoints":
        for name in BUNDLED:
            print(f"{name:10} bundled")
        for name, repo in HUB.items():
            print(f"{name:10} {repo}, or ${variable(name)}; --synthetic: seeded weights")
    else:
        print("\n".join(names()))
    return CONFORMS


if __name__ == "__main__":
    sys.exit(main())
