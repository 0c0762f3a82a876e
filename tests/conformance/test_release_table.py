"""tools/releases.py: what is kept of a report, which verdicts are had, and the page that is made of them."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT

sys.path.append(str(ROOT / "tools"))

import releases
from released import page
from released.listed import PACKAGES, Job, jobs
from released.verdict import command, named, small
from released.work import Given

PUBLISHED = ROOT / "conformance" / "published"
COLUMNS = ["tap", "judged"]


def judgement(case: str, *defects: str, **more: Any) -> dict[str, Any]:
    """One judgement of a report, failing where it names defects."""
    culprit = {"tap": "logits", "call": 2, "status": "values", "worst": 1e5}
    return {
        "case": case,
        "dtype": "float32",
        "skipped": "",
        "error": "",
        "deviates": bool(defects),
        "culprit": culprit if defects else None,
        "named": [{"defect": d, "verdict": "named"} for d in defects] + [{"defect": "D99", "verdict": "absent"}],
        "local": [["logits", 1e5 if defects else 0.5], ["loss", "nan"]],
    } | more


def document(*judgements: dict[str, Any], verdict: str = "DEVIATES") -> dict[str, Any]:
    environment = {"t5g2ref": "0.1.0", "ctranslate2": "4.8.5"}
    told = [{"found": [], "sentences": ["nothing fits"]}, {"found": [["D32", "D43"]], "sentences": ["it is both"]}]
    return {
        "verdict": verdict,
        "judgements": list(judgements),
        "columns": COLUMNS,
        "diagnoses": told,
        "environment": environment,
        "seconds": 12.4,
    }


JOB = Job(PACKAGES["ctranslate2"], "4.8.5", PACKAGES["ctranslate2"].ways[0])


def test_what_is_kept_of_a_report() -> None:
    raised = judgement("padded-right", error="ValueError: no\n    more of it")
    skipped = judgement("image", skipped="text alone")
    kept = small(JOB, 1, document(judgement("short"), judgement("window", "D32", "D69"), raised, skipped), "")
    assert kept["judged"] == ["short", "window"]
    assert kept["errors"] == {"padded-right": "ValueError: no"}
    assert kept["first"] == {"case": "window", "tap": "logits", "call": 2, "status": "values"}
    assert (kept["defects"], kept["diagnosis"]) == ([["D32", "D69"]], [["D32", "D43"]])
    assert (kept["worst"], kept["versions"], kept["seconds"]) == (1e5, {"ctranslate2": "4.8.5"}, 12)
    assert kept["command"].startswith(
        "python -m conformance --peer ctranslate2@PYTHON --lane fp32 --ckpt tiny-released"
    )


def test_a_run_without_a_report_is_no_verdict() -> None:
    kept = small(JOB, 2, None, "conformance: peer ctranslate2: it refuses")
    assert (kept["verdict"], kept["status"], kept["said"]) == ("NONE", 2, "conformance: peer ctranslate2: it refuses")
    assert page.cell(kept, str) == "no verdict: conformance: peer ctranslate2: it refuses"


def test_a_case_that_names_more_defects_than_another_adds_nothing() -> None:
    cases = [
        judgement("window", "D32", "D69"),
        judgement("equal-lengths", "D30", "D32", "D69"),
        judgement("eoi", "D05"),
    ]
    assert named(cases) == [["D05"], ["D32", "D69"]]
    assert named([judgement("a", "D32"), judgement("b", "D32")]) == [["D32"]]
    assert named([judgement("short", "D01") | {"named": []}]) == []
    assert named([judgement("short", "D11", "D12") | {"dtype": "bfloat16"}]) == [["D11 with D12"]]


def test_cells() -> None:
    failing = small(JOB, 1, document(judgement("window", "D32", "D69"), judgement("eoi", "D05")), "")
    assert page.cell(failing, "`{}`".format) == "DEVIATES at `logits`, case `window`: D05; D32 or D69"
    unnamed = small(JOB, 1, document(judgement("short", "D01") | {"named": []}), "")
    assert page.cell(unnamed, str) == "DEVIATES at logits, case short: D32 with D43"
    right = small(JOB, 0, document(judgement("short"), verdict="CONFORMS"), "")
    assert page.cell(right, str) == "CONFORMS, worst ratio 0.5"
    assert page.cell(None, str) == "not judged"


def test_every_verdict_has_a_file_of_its_own() -> None:
    files = [job.file for job in jobs()]
    assert len(set(files)) == len(files) >= 20
    assert all(re.fullmatch(r"[\w.-]+\.json", file) for file in files)
    assert [job.package.name for job in jobs(["keras-hub"])] == ["keras-hub"] * len(PACKAGES["keras-hub"].versions)


@pytest.mark.parametrize("job", list(jobs()), ids=lambda job: job.file)
def test_every_job_s_command_parses(job: Job) -> None:
    pytest.importorskip("rich", reason="needs rich: without it the judge's commands have no options")
    from conformance.commands.command_line import parser

    parser().parse_args(command(job, job.way.peer.format(python="PYTHON"))[2:])


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    asked: list[str] = []

    def one(_: Given, job: Job) -> dict[str, Any] | str:
        asked.append(job.file)
        if job.version == "0.31.1":
            return "ERROR: no such version"
        return small(job, 0, document(judgement("short"), verdict="CONFORMS"), "")

    every = [job.file for job in jobs(["keras-hub"])]
    releases.run(["keras-hub"], Given(tmp_path, {}), published=tmp_path, here=one)
    assert asked == every
    missing = every[1]
    assert sorted(path.name for path in (tmp_path / "verdicts").iterdir()) == sorted(set(every) - {missing})
    releases.run(["keras-hub"], Given(tmp_path, {}), published=tmp_path, here=one)
    assert asked == [*every, missing], "only what is not there is had again"
    assert releases.pages(tmp_path) == len(every) - 1
    assert "| 0.31.1 |" not in (tmp_path / "verdicts.md").read_text()


class Cells(HTMLParser):
    """The text of each cell of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._in = tag == "td"
        self.found += [""] * self._in

    def handle_data(self, data: str) -> None:
        if self._in:
            self.found[-1] += data.rstrip("\n")

    def handle_endtag(self, tag: str) -> None:
        self._in = self._in and tag != "td"


def test_both_pages_say_the_same(tmp_path: Path) -> None:
    verdicts = []
    for version in ("4.8.0", "4.8.5"):
        job = Job(JOB.package, version, JOB.way)
        verdicts.append(small(job, 1, document(judgement("window", "D<2>|")), ""))
    found = page.tables(verdicts, releases.place)
    said = ["4.8.5", "DEVIATES at logits, case window: D<2>|", "4.8.0", "DEVIATES at logits, case window: D<2>|"]
    rows = [line[2:-2].replace("`", "") for line in page.markdown(found).splitlines() if line.startswith("| 4")]
    assert [cell.replace("\\|", "|") for row in rows for cell in row.split(" | ")] == said
    assert Cells(page.page(found)).found == said


def test_the_published_pages_are_those_of_the_published_verdicts(tmp_path: Path) -> None:
    verdicts = [json.loads(path.read_text()) for path in (PUBLISHED / "verdicts").glob("*.json")]
    assert len(verdicts) >= 20
    found = page.tables(verdicts, releases.place)
    assert (PUBLISHED / "verdicts.md").read_text() == page.markdown(found)
    assert (PUBLISHED / "verdicts.html").read_text() == page.page(found)
    for verdict in verdicts:
        assert not re.search(r"/(tmp|home|opt|root|work|usr)/", json.dumps(verdict)), verdict["version"]


@pytest.mark.parametrize("package", [package for package in PACKAGES.values() if package.report], ids=lambda p: p.name)
def test_each_report_is_there_with_its_script(package: Any) -> None:
    report = PUBLISHED / package.report
    assert report.is_file()
    assert report.with_suffix(".py").name in report.read_text(encoding="utf-8")
    assert report.with_suffix(".py").is_file()
    for page_ in ("verdicts.md", "verdicts.html"):
        assert package.report in (PUBLISHED / page_).read_text(encoding="utf-8")
