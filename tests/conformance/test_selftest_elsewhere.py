"""What a self-test's jobs give comes back from another machine as it was, or is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs rich: the self-test reports with it")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: processes share the cores by it")

from conformance.exchange.plain import PlainError, encoded
from conformance.selftest import diagnoses, workers
from conformance.selftest.black_box import Told
from conformance.selftest.trial import Trial

TRIAL = Trial("D24", {"short": "K"}, ("decoder.norm", "values", 1), 1e7, ["D24"], [("a", 0, "values", math.inf)])
LEGAL = [("sdpa", "float32", "tiny", "short", "")]
TOLD = Told(("D31", "D39"), "named", (("D31", "D39"),), 2.5)


@pytest.mark.parametrize(
    ("checked", "job", "result"),
    [
        (workers._checked, ("fault", "D24", "own"), TRIAL),
        (workers._checked, ("fault", "X1", "own"), Trial("X1")),
        (workers._checked, ("legal", "sdpa", "float32", "tiny"), LEGAL),
        (diagnoses._checked, ("pair", "7", "9"), TOLD),
        (diagnoses._checked, ("pair", "8", "9"), None),
    ],
)
def test_as_it_was(checked: Any, job: Any, result: Any) -> None:
    assert repr(checked(job, encoded(result))) == repr(result)  # NaN is unlike itself


@pytest.mark.parametrize(
    ("checked", "job", "raw"),
    [
        (workers._checked, ("fault", "D25", "own"), encoded(TRIAL)),
        (workers._checked, ("fault", "D24", "own"), encoded(LEGAL)),
        (workers._checked, ("fault", "D24", "own"), None),
        (workers._checked, ("legal", "sdpa", "float32", "tiny"), encoded(TRIAL)),
        (workers._checked, ("legal", "sdpa", "float32", "tiny"), [["sdpa"]]),
        (diagnoses._checked, ("pair", "7", "9"), encoded(TRIAL)),
        (diagnoses._checked, ("pair", "7", "9"), "named"),
    ],
)
def test_what_is_no_result(checked: Any, job: Any, raw: Any) -> None:
    with pytest.raises(PlainError):
        checked(job, raw)
