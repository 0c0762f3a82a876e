"""The model against values that transformers computed, without torch: see tools/make_goldens.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from conformance.cases.catalogue import build
from conformance.cases.plan import plan_of, validity
from conformance.checkpoints import resolve
from conformance.measure.limits import LIMITS
from conformance.measure.ratio import examine
from conformance.oracle.run_case import models, program
from conformance.oracle.side_by_side import walk

PATH = Path(__file__).parent / "goldens" / "transformers.safetensors"


def opened() -> Any:
    file = safe_open(PATH, "np")
    found = file.metadata() or {}
    assert found.get("magic") == "t5g2ref-goldens", f"{PATH} is not a file of goldens: python tools/make_goldens.py"
    assert found.get("format") == "1", f"{PATH} has format {found.get('format')}: python tools/make_goldens.py"
    return file


def names() -> Iterator[tuple[str, str]]:
    for variant in ("tiny", "tiny-even"):
        for case in build(resolve(variant, synthetic=False)[0].config):
            if not case.costly:
                yield variant, case.name


@pytest.mark.parametrize(("variant", "name"), list(names()))
def test_agrees_with_transformers(variant: str, name: str) -> None:
    """Float64 truth, float32 controls and the golden stand in the ratio that the judge accepts, at every kept tap."""
    target = resolve(variant, synthetic=False)[0]
    (case,) = [c for c in build(target.config) if c.name == name]
    plan = {(call, tap.name): tap for call, tap in plan_of(target.config, case)}
    file, compared = opened(), []

    def meet(call: int, tap: str, values: list[Any]) -> list[Any]:
        key = f"{variant}/{name}/{call}/{tap}"
        if key in keys:
            truth, *controls = values
            row = plan[call, tap]
            finding = examine(
                row,
                call,
                file.get_tensor(key),
                truth,
                controls,
                validity(case, call, row, truth.shape),
                dtype="float32",
                limit=LIMITS["cumulative"],
            )
            assert finding.passed, finding
            assert finding.tokens > 0
            compared.append(key)
        return values

    keys = set(filter(lambda key: key.startswith(f"{variant}/{name}/"), file.keys()))
    walk(models(target.config, target.weights, case, "float32"), program(case), meet)
    assert keys, "no golden for this case: python tools/make_goldens.py"
    assert set(compared) == keys


def test_a_wrong_golden_is_refused() -> None:
    """The comparison above can fail: the loss moved by one part in a thousand is out of bounds."""
    target = resolve("tiny", synthetic=False)[0]
    (case,) = [c for c in build(target.config) if c.name == "loss"]
    tap = {t.name: t for _, t in plan_of(target.config, case)}["loss"]
    seen: list[list[Any]] = []

    def meet(call: int, name: str, values: list[Any]) -> list[Any]:
        if name == "loss":
            seen.append(values)
        return values

    walk(models(target.config, target.weights, case, "float32"), program(case), meet)
    ((truth, *controls),) = seen
    wrong = np.float32(truth * 1.001)
    finding = examine(tap, 0, np.asarray(wrong), truth, controls, None, dtype="float32", limit=LIMITS["cumulative"])
    assert finding.status == "values"
