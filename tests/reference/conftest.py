"""Fixtures of the reference's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cupy import stand_in

import t5g2ref.backend.cuda


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Puts a stand-in where CuPy would be, and behind the test all as it was."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(**facts: Any) -> Any:
        cupy = stand_in(**facts)
        fused: Any = SimpleNamespace(TWINS={"rms_norm": print})
        parts = {"blas": SimpleNamespace(), "fused": fused, "device": None}
        for name, part in parts.items():  # the real ones take from CuPy what the stand-in has not
            monkeypatch.setitem(sys.modules, f"t5g2ref.backend.cuda.{name}", part)
            monkeypatch.setattr(t5g2ref.backend.cuda, name, part, raising=False)
        del sys.modules["t5g2ref.backend.cuda.device"]  # so that it is imported anew, and forgotten afterwards
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        return cupy

    return put
