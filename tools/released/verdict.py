"""Makes one small verdict of a judge's report: what was judged, the first bad tap, the defects that were named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from released.listed import Job

FORMAT = 1
HALF = ("bfloat16", "float16")
OURS = ("t5g2ref",)  # of the environment, what is no version of the peer's


def command(job: Job, peer: str) -> list[str]:
    """The judge's arguments."""
    way = job.way
    cases = [word for case in way.cases for word in ("--case", case)]
    return ["-m", "conformance", "--peer", peer, "--lane", way.lane, "--ckpt", way.ckpt, *cases, "--once"]


def judged(job: Job, python: Path, timeout: float) -> dict[str, Any]:
    """The verdict of one release in one way."""
    peer = job.way.peer.format(python=python)
    judge = str(python) if job.package.judges else sys.executable
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        arguments = [judge, *command(job, peer), "--no-progress", "--jobs", "1", "--json", str(report)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, check=False)
        document = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    said = (done.stderr.strip().splitlines() or [""])[-1].replace(str(python), "PYTHON")
    return small(job, done.returncode, document, said)


def small(job: Job, status: int, document: dict[str, Any] | None, said: str) -> dict[str, Any]:
    """What is kept of a report; `said` stands for it where there is none."""
    shown = " ".join(["python", *command(job, job.way.peer.format(python="PYTHON"))])
    kept = {"format": FORMAT, "package": job.package.name, "version": job.version, "way": job.way.name}
    kept |= {"checkpoint": job.way.ckpt, "command": shown, "status": status}
    if document is None:
        return kept | {"verdict": "NONE", "said": said}
    judgements = document["judgements"]
    wrong = [j for j in judgements if j["deviates"] and j["culprit"]]
    first = wrong[0] if wrong else None
    at = first and {"case": first["case"], **{n: first["culprit"][n] for n in ("tap", "call", "status")}}
    return kept | {
        "verdict": document["verdict"],
        "judged": [j["case"] for j in judgements if not j["skipped"] and not j["error"]],
        "errors": {j["case"]: j["error"].splitlines()[0] for j in judgements if j["error"]},
        "first": at,
        "defects": named(wrong),
        "diagnosis": [together for d in document["diagnoses"] for together in d["found"]],
        "worst": max((r for j in judgements for r in ratios(j, document["columns"])), default=0.0),
        "versions": {n: v for n, v in document["environment"].items() if n not in OURS},
        "seconds": round(document["seconds"]),
    }


def named(wrong: list[dict[str, Any]]) -> list[list[str]]:
    """Sets of defects: each failing case has one of the first set that is a part of what it names.

    A case that names one of several defects says less than one that names fewer of them.
    """
    sets = {_names(j) for j in wrong}
    ordered = sorted(filter(None, sets), key=lambda s: (len(s), s))
    return [list(s) for n, s in enumerate(ordered) if not any(set(o) <= set(s) for o in ordered[:n])]


def _names(judgement: dict[str, Any]) -> tuple[str, ...]:
    """The defects that a case names. Of a half type all of them are there: their patterns are fitted together."""
    found = tuple(n["defect"] for n in judgement["named"] if n["verdict"] == "named")
    return (" with ".join(found),) if found and judgement["dtype"] in HALF else found


def ratios(judgement: dict[str, Any], columns: list[str]) -> list[float]:
    """What was compared with a limit at each tap of the local anchor; what is no number is left out."""
    at = columns.index("judged")
    return [row[at] for row in judgement["local"] if isinstance(row[at], float)]
