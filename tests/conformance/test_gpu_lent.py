"""Weights on a card that judges share, in processes of their own. Run with: pytest -m gpu"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from command_line import process, strictly

from conformance.checkpoints import resolve
from conformance.sweep import card
from conformance.sweep.lent import Lent, borrowed, lending
from conformance.sweep.pool import done
from conformance.sweep.task import Task
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import Backend, find
from t5g2ref.dtypes import HALF, RUN_IN

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> Backend:
    cupy = pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device; CuPy sees none")
    return find("cupy")


@pytest.fixture
def target(device: Backend) -> Target:
    return resolve(str(bundled("tiny")), synthetic=True, backend=device)[0]


@pytest.fixture(params=["alone", "mps"])
def beside(request: pytest.FixtureRequest, device: Backend) -> Iterator[None]:
    """Processes that share the card by MPS, of which this one is no client, or that take turns at it."""
    if request.param == "mps" and shutil.which(card.CONTROL) is None:
        pytest.skip(f"needs {card.CONTROL}")
    with card.side_by_side(device) if request.param == "mps" else nullcontext(""):
        yield


def _bits(target: Target, dtype: Any) -> str:
    total = hashlib.sha256()
    for name, value in sorted(target.rounded(dtype).items()):
        total.update(f"{name} {value.dtype} {value.shape}".encode() + target.backend.host(value).tobytes())
    return total.hexdigest()


def _borrowed(lent: Lent, mark: str) -> tuple[Target, Path]:
    return borrowed(lent, find("cupy")), Path(mark)


def _looked(state: tuple[Target, Path], dtype: str) -> tuple[str, bool]:
    """The bits, and whether all lies in one piece of memory. The first process to come ends once."""
    target, mark = state
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        arrays = [*target.weights.values(), *target.rounded(dtype).values()]  # type: ignore[arg-type]
        return _bits(target, dtype), len({value.data.mem.ptr for value in arrays}) == 1
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.usefixtures("beside")
def test_processes_see_the_same_bits(device: Any, target: Target, tmp_path: Path) -> None:
    """One of them is killed, and another takes its place."""
    expected = {dtype: (_bits(target, dtype), True) for dtype in RUN_IN}
    with lending([target], [*HALF]) as loan:  # type: ignore[list-item]
        assert loan.why == ""
        found = dict(done(Task(_borrowed, (*loan.lent, str(tmp_path / "mark")), _looked), [*RUN_IN], 2))
    assert found == expected
    assert {dtype: _bits(target, dtype) for dtype in RUN_IN} == {d: bits for d, (bits, _) in expected.items()}


def test_they_are_on_the_card_once(device: Any, target: Target) -> None:
    """Broken by weights that stay in the pool."""
    size = sum(value.nbytes for value in target.weights.values())
    before = device.pool.used_bytes()
    with lending([target], ()) as loan:
        assert loan.lent
        assert device.pool.used_bytes() <= before - size


NOT_LENT = """
import sys
from t5g2ref.backend import BackendError
from t5g2ref.backend.cuda.device import CudaBackend

def refuse(self, size):
    raise BackendError("not today")

CudaBackend.arena = refuse
"""


def _report(path: Path, code: str = "") -> Any:
    few = (f"--ckpt={bundled('tiny')}", "--synthetic", "--case=short", "--case=window", "--no-progress")
    peers = [f"--peer=t5g2ref:cupy:{dtype}" for dtype in ("float32", "bfloat16")]
    ran = process(*few, *peers, "--backend=cupy", "--jobs=2", "--json", str(path), code=code)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    return _plain(strictly(path))


def _plain(part: Any) -> Any:
    """A report without what no two runs agree on."""
    if isinstance(part, dict):
        return {k: _plain(v) for k, v in part.items() if k not in ("seconds", "peak_bytes", "command")}
    return [_plain(one) for one in part] if isinstance(part, list) else part


def test_a_run_that_shares_reports_what_another_does(device: Any, tmp_path: Path) -> None:
    shared, other = _report(tmp_path / "shared.json"), _report(tmp_path / "other.json", NOT_LENT)
    assert not [note for note in shared["notes"] if "made the weights again" in note]
    assert "each process made the weights again: not today" in other["notes"]
    assert shared["judgements"] == other["judgements"]
