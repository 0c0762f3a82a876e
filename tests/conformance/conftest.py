"""Fixtures of the suite's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import strict_arrays as strict
from command_line import Check, Ours, Ran, Run, ran
from dumping import TINY
from helpers import Array, frozen
from strict_arrays import StrictArray

from conformance.measure.limits import FEW_NUMBERS


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """`strict_arrays.py`'s arrays have what those of a device library have, beyond what the model uses."""
    for name, keywords in {"view": (), "get": ()}.items():
        monkeypatch.setitem(strict.METHODS, name, keywords)
    monkeypatch.setitem(strict.FUNCTIONS, "empty", ("dtype",))
    monkeypatch.setitem(strict.ARRAYS, "empty", 0)
    monkeypatch.setattr(strict, "ATTRIBUTES", (*strict.ATTRIBUTES, "nbytes"))
    interface = property(lambda array: {"version": 3, "typestr": array.dtype.str})
    monkeypatch.setattr(StrictArray, "__cuda_array_interface__", interface, raising=False)
    monkeypatch.setattr(StrictArray, "get", lambda array: array._library.asnumpy(array), raising=False)


@pytest.fixture
def truth() -> Array:
    """(2, 5, 16) of ones: every token's norm is 4, and 1 + 2⁻¹⁰ is exact in float32."""
    return frozen(np.ones((2, 5, FEW_NUMBERS)))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments, peers=[…])` → exit status, lines on stdout, stderr; the terminal has 100 columns."""
    from conformance.commands import request as running

    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str, peers: list[Ours] | None = None) -> Ran:
        if peers is not None:
            known = {peer.name: peer for peer in peers}
            monkeypatch.setattr(running, "names", lambda dtype: list(known))
            monkeypatch.setattr(running, "create", lambda name, backend: known[name])
            if "--lane" not in arguments:  # these show taps and cannot be probed
                arguments = (*arguments, "--lane", "fp32")
        return ran(capsys, *arguments)

    return call


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """`check(folder, *arguments)` → exit status, lines on stdout, stderr; never a stack trace."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(folder: Path, *arguments: str, ckpt: str = TINY, case: str = "short") -> Ran:
        wanted = ["--case", case] if case else []
        status, lines, err = ran(capsys, "check", str(folder), "--ckpt", ckpt, *wanted, "--no-progress", *arguments)
        assert "Traceback" not in "\n".join(lines) + err
        assert lines[-1].startswith("VERDICT: ") if status != 2 else not lines
        return status, lines, err

    return call
