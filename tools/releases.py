"""Judge releases of the peers, keep a small verdict of each, and make the page of them.

    python tools/releases.py --environments FOLDER [PACKAGE …]
    python tools/releases.py --page

Each release gets an environment of its own in FOLDER. transformers' stand on the packages of this Python, which needs
torch and the judge; `--base PACKAGE=PYTHON` lets others stand on another Python's. A verdict that is there already is
not had again, so that an interrupted run goes on where it was; `--again` has it again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from released import page
from released.environments import made
from released.listed import PACKAGES, Job, jobs
from released.verdict import judged

from t5g2ref.files import write_text

PUBLISHED = Path(__file__).resolve().parents[1] / "conformance" / "published"
TIMEOUT = 1800.0  # seconds for a verdict


def one(job: Job, environments: Path, base: str | None) -> dict[str, Any] | str:
    """The verdict of a job; why there is none, where its release could not be installed."""
    try:
        python = made(environments, job.package, job.version, base)
    except subprocess.CalledProcessError as error:
        return ((error.stderr or "").strip().splitlines() or [str(error)])[-1]
    return judged(job, python, TIMEOUT)


def run(names: list[str], environments: Path, bases: dict[str, str], again: bool, published: Path = PUBLISHED) -> None:
    """Have every verdict that is not there yet, each written as soon as it is had."""
    folder = published / "verdicts"
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs(names):
        path = folder / job.file
        if path.exists() and not again:
            continue
        base = bases.get(job.package.name, sys.executable if job.package.judges else None)
        verdict = one(job, environments, base)
        if isinstance(verdict, dict):
            write_text(path, json.dumps(verdict, indent=1) + "\n")
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
    parser.add_argument("--again", action="store_true", help="have verdicts again that are there")
    parser.add_argument("--page", action="store_true", help="make the pages alone")
    given = parser.parse_args(arguments)
    if strange := [name for name in given.packages if name not in PACKAGES]:
        parser.error(f"no package {strange[0]}; there are {', '.join(PACKAGES)}")
    if not given.page:
        if given.environments is None:
            parser.error("--environments FOLDER is missing: each release is installed there")
        bases = dict(word.split("=", 1) for word in given.base)
        run(given.packages, given.environments.resolve(), bases, given.again)
    print(f"{pages()} verdicts in {PUBLISHED.name}/verdicts.md and verdicts.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
