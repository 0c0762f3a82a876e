"""tools/decoding.py: its table, with the kernel in emulation."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from emulated import launch, needs_compiler
from processes import ROOT

from t5g2ref.backend import NUMPY
from t5g2ref.backend.cuda.decoding.stepping import Stepper

sys.path.append(str(ROOT / "tools"))

import decoding

ARGUMENTS = ["--ckpt", "tiny", "--dtype", "float32", "--source", "12", "--tokens", "2"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LAUNCHES", 1)
    monkeypatch.setattr(decoding, "copy_rate", lambda backend, array, parts: 1e9)


@needs_compiler
def test_it_times_what_agrees_with_the_clear_path(capsys: pytest.CaptureFixture[str]) -> None:
    fast = NUMPY.with_twins(Stepper(launch, lambda: (3, 110_000)).twins())
    assert decoding.measured(decoding.parser().parse_args([*ARGUMENTS, "--batch", "1,9"]), NUMPY, fast) == 0
    printed = capsys.readouterr().out
    assert "9   not served by the kernel" in printed
    batch, _, _, _, apart = next(line.split() for line in printed.splitlines() if line.startswith("    1"))
    assert (batch, 0 <= float(apart) < 1e-5) == ("1", True)
    assert "2 of 2 ids are the definition's" in printed


@needs_compiler
def test_it_fails_where_the_logits_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = NUMPY.with_twins(Stepper(launch, lambda: (3, 110_000)).twins())
    for wrong in (1.0, np.nan):
        monkeypatch.setattr(decoding.Timed, "apart", lambda self, made, wrong=wrong: wrong)
        assert decoding.measured(decoding.parser().parse_args([*ARGUMENTS, "--batch", "1"]), NUMPY, fast) == 1


@needs_compiler
def test_it_fails_where_an_id_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = NUMPY.with_twins(Stepper(launch, lambda: (3, 110_000)).twins())
    monkeypatch.setattr(decoding.Timed, "defined", lambda self, made, uniform: 1)
    assert decoding.measured(decoding.parser().parse_args([*ARGUMENTS, "--batch", "1"]), NUMPY, fast) == 1


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def none(name: str) -> Any:
        raise decoding.BackendError(f"{name} is not to be had")

    monkeypatch.setattr(decoding, "find", none)
    assert decoding.main([]) == 2
    assert capsys.readouterr().err == "decoding.py: cupy is not to be had\n"
