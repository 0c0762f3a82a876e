"""Judge releases of the peers, keep a small verdict of each, and make the page of them.

    python tools/releases.py --environments FOLDER [--jobs N | --cluster ADDRESS] [PACKAGE …]
    python tools/releases.py --page

Each release gets an environment of its own in FOLDER. transformers' stand on the packages of this Python, which needs
torch and the judge; `--base PACKAGE=PYTHON` lets others stand on another Python's. A verdict that is there already is
not had again, so that an interrupted run goes on where it was; `--again` has it again. With `--cluster` each machine
has its own FOLDER of that name, or all share one, and workers import this folder: on a disk that they see, or with
PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from released import page
from released.listed import PACKAGES, Job, jobs
from released.work import Given, Verdict, verdicts

from conformance.commands import options as shared
from conformance.errors import Unavailable, UsageError
from conformance.sweep.engine import Engine
from t5g2ref.files import write_text

PUBLISHED = Path(__file__).resolve().parents[1] / "conformance" / "published"
ALONE = Engine(1)


def run(
    names: list[str],
    given: Given,
    *,
    again: bool = False,
    published: Path = PUBLISHED,
    engine: Engine = ALONE,
    here: Callable[[Given, Job], Verdict] = Given.verdict,
) -> None:
    """Have every verdict that is not there yet, each written as soon as it is had."""
    folder = published / "verdicts"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [job for job in jobs(names) if again or not (folder / job.file).exists()]
    for job, verdict in verdicts(given, wanted, engine, here):
        if isinstance(verdict, dict):
            write_text(folder / job.file, json.dumps(verdict, indent=1) + "\n")
        said = verdict if isinstance(verdict, str) else page.cell(verdict, str)
        print(f"{job.package.name} {job.version}, {job.way.name}: {said}", flush=True)


def pages(published: Path = PUBLISHED) -> int:
    """Make both pages of the verdicts that are there; returns their number."""
    verdicts = [json.loads(path.read_text(encoding="utf-8")) for path in (published / "verdicts").glob("*.json")]
    found = page.tables(verdicts, place)
    write_text(published / "verdicts.md", page.markdown(found))
    write_text(published / "verdicts.html", page.page(found))
    return len(verdicts)


def place(verdict: dict[str, Any]) -> tuple[int, ...]:
    """Where a verdict stands: by package and way as they are listed, the newest release first."""
    package = PACKAGES[verdict["package"]]
    ways = [way.name for way in package.ways]
    return list(PACKAGES).index(package.name), package.versions.index(verdict["version"]), ways.index(verdict["way"])


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"of {', '.join(PACKAGES)}; all by default")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="where they are, or are made")
    parser.add_argument("--base", action="append", default=[], metavar="PACKAGE=PYTHON")
    shared.jobs(parser, "one")
    shared.cluster(parser)
    parser.add_argument("--again", action="store_true", help="have verdicts again that are there")
    parser.add_argument("--page", action="store_true", help="make the pages alone")
    given = parser.parse_args(arguments)
    if strange := [name for name in given.packages if name not in PACKAGES]:
        parser.error(f"no package {strange[0]}; there are {', '.join(PACKAGES)}")
    if not given.page:
        if given.environments is None:
            parser.error("--environments FOLDER is missing: each release is installed there")
        bases = dict(word.split("=", 1) for word in given.base)
        what = Given(given.environments.resolve(), bases)
        try:
            run(given.packages, what, again=given.again, engine=shared.engine(given, usual=1))
        except (UsageError, Unavailable) as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{pages()} verdicts in {PUBLISHED.name}/verdicts.md and verdicts.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
