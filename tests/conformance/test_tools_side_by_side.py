"""The tools that do many things at once use the suite's scheduler: what they ask of it, and what they believe."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT

pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: processes share the cores by it")
sys.path.append(str(ROOT / "tools"))

import gpu_steps
from released import work
from released.listed import Job, jobs

from conformance.exchange.plain import PlainError, encoded
from conformance.selftest import false_alarms
from conformance.sweep.engine import Engine
from conformance.sweep.task import PROCESS, Task

WRITES = "import sys; print('said'); open(sys.argv[1] + '/one.json', 'w').write('[]'); sys.exit(3)"
ORDER = ("bench", "one")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    one = [sys.executable, "-c", WRITES, "{out}"]
    monkeypatch.setattr(gpu_steps, "STEPS", {"one": ("", one), "bench": ("", [sys.executable, "-c", "1"])})


def test_a_timed_step_comes_last(steps: None) -> None:
    found = dict(gpu_steps.ended(ORDER, Engine(1)))
    assert list(found) == ["one", "bench"]
    assert (found["one"].status, found["one"].log, found["one"].report) == (3, "said\n", "[]")
    assert gpu_steps._checked("one", gpu_steps._plain("one", found["one"])) == found["one"]


@pytest.mark.parametrize(
    ("named", "number", "card"),
    [((), "1", "1"), (("4", "7"), "0", "4"), (("4", "7"), "1", "7"), (("4", "7"), "2", "4")],
)
def test_each_process_has_a_card(
    monkeypatch: pytest.MonkeyPatch, named: tuple[str, ...], number: str, card: str
) -> None:
    """Broken by processes that all take the first card."""
    monkeypatch.setenv(PROCESS, number)
    assert gpu_steps._cards(named) == card


@pytest.mark.parametrize("raw", [None, [0, 1.0, "a"], [True, 1.0, "", ""], ["0", 1.0, "", ""]])
def test_what_is_no_step(raw: Any) -> None:
    with pytest.raises(PlainError, match="expected the status"):
        gpu_steps._checked("one", raw)


def _release() -> Job:
    return next(iter(jobs(["keras-hub"])))


def test_a_verdict_of_another_release_is_refused() -> None:
    job = _release()
    verdict = {"package": "keras-hub", "version": job.version, "way": job.way.name, "worst": math.inf}
    assert work._checked(job, encoded(verdict)) == verdict
    assert work._checked(job, "ERROR: no such version") == "ERROR: no such version"
    for raw in (encoded(verdict | {"version": "0"}), None, []):
        with pytest.raises(PlainError, match="expected the verdict of"):
            work._checked(job, raw)


def test_releases_go_to_the_engine_that_was_asked_for(tmp_path: Path) -> None:
    asked = list[tuple[str, list[Job]]]()

    class Asked(Engine):
        def done(self, task: Task, wanted: Any) -> Any:
            asked.append((self.cluster, list(wanted)))
            return [(job, "none") for job in wanted]

    wanted = list(jobs(["keras-hub"]))
    assert list(work.verdicts(work.Given(tmp_path, {}), wanted, Asked(None, "a"))) == [(job, "none") for job in wanted]
    assert asked == [("a", wanted)]


def test_a_run_of_the_study_comes_back_as_it_was() -> None:
    run = next(iter(false_alarms.plan(1)))
    lost = false_alarms._lost(run, "its process ended")
    assert lost["unclear"] == ["its process ended"]
    found = lost | {"local": math.nan, "ceiling": math.inf, "alarms": ["a"]}
    back = false_alarms._checked(run, encoded(found))
    assert str(back) == str(found)
    for raw in (None, encoded(found | {"seed": 7}), encoded(found) | {"more": 1}, encoded(found) | {"alarms": [1]}):
        with pytest.raises(PlainError):
            false_alarms._checked(run, raw)
