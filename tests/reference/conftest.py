"""Fixtures of the reference's tests."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cupy import stand_in
from finding import FIRST, Describe, describing
from small_hub import Hub, files_of, serving

import t5g2ref.backend.cuda
from t5g2ref.checkpoint.folder import Checkpoint, save
from t5g2ref.config import Config


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Puts a stand-in where CuPy would be, and behind the test all as it was."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(**facts: Any) -> Any:
        cupy = stand_in(**facts)
        fused: Any = SimpleNamespace(TWINS={"rms_norm": print})
        anew = (
            "kernels",
            "sharing",
            "flash",
            "fast",
            "device",
        )  # imported under the stand-in, and forgotten afterwards
        parts = {"blas": SimpleNamespace(), "fused": fused, **dict.fromkeys(anew)}
        for name, part in parts.items():  # the real ones take from CuPy what the stand-in has not
            monkeypatch.setitem(sys.modules, f"t5g2ref.backend.cuda.{name}", part)
            monkeypatch.setattr(t5g2ref.backend.cuda, name, part, raising=False)
        for name in anew:
            del sys.modules[f"t5g2ref.backend.cuda.{name}"]
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        for name in ("sharing", "flash"):  # which others take from the package
            importlib.import_module(f"t5g2ref.backend.cuda.{name}")
        return cupy

    return put


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled tiny checkpoint in bfloat16, in the Hub's older layout, in three shards."""
    folder = tmp_path_factory.mktemp("sharded")
    source = Checkpoint.open(t5g2ref.bundled("tiny"))
    tensors = ((name, source.read(name)) for name in source.tensors)
    save(folder, Config.load(t5g2ref.bundled("tiny")), tensors, layout="hub", shard_bytes=350_000)
    assert (folder / FIRST).is_file()
    return folder


@pytest.fixture
def hub(sharded: Path) -> Iterator[Hub]:
    """That checkpoint on a Hub on this machine."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: it asks the Hub")
    with serving(Hub(files_of(sharded) | {"README.md": b"not wanted"})) as served:
        yield served


@pytest.fixture
def describe(hub: Hub, tmp_path: Path) -> Describe:
    """`describe` as a user runs it, against that Hub and with a cache of its own."""
    return describing(hub, tmp_path / "home")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, peer_installed: None) -> Any:
    """tools/bench.py without what takes seconds: its ceilings, collecting garbage before each trial, and settling."""
    from bench_rows import Ceilings
    from benchmark import items, run

    rates = {"float32": 1e9, "float64": 1e9}
    monkeypatch.setattr(items, "beside", lambda *_: (2e9, 3e9))
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    monkeypatch.setattr(items, "SETTLE", 0.0)
    monkeypatch.setattr(run, "measure", lambda *_: Ceilings(8, rates, rates, 1e9))
    return run
