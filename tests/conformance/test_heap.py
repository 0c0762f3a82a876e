"""What a judge frees stays with its process, where that is known to work and nobody has set it otherwise."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.commands import run
from conformance.sweep import heap
from t5g2ref.backend import NUMPY

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
FAULTS = """
import resource, numpy as np
from conformance.sweep import heap

kept = heap.keep() if {keep} else False
np.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(1 << 23)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> tuple[str, int]:
    """Whether memory was kept, and how many pages were asked for while 20 arrays of 64 MiB came and went."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], check=True, capture_output=True, text=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@GLIBC
def test_what_is_freed_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in heap.SET_BY_USER:
        monkeypatch.delenv(name, raising=False)
    (kept, few), (_, many) = faults(keep=True), faults(keep=False)
    assert kept == "True"
    assert few < many / 4


@GLIBC
@pytest.mark.parametrize("name", heap.SET_BY_USER)
def test_what_a_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setenv(name, "1")
    library = SimpleNamespace(mallopt=lambda *given: told.append(given), gnu_get_libc_version=None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert not heap.keep()
    assert not told


@pytest.mark.parametrize("library", [SimpleNamespace(), SimpleNamespace(mallopt=lambda *_: 1)])
def test_another_c_library_is_left_alone(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert not heap.keep()


@pytest.mark.parametrize(
    ("own_process", "streamed", "kept"), [(True, False, 1), (False, False, 0), (True, True, 0)], ids=str
)
def test_a_program_that_calls_the_suite_is_left_alone(
    own_process: bool, streamed: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    work = SimpleNamespace(targets=[SimpleNamespace(streamed=streamed, backend=NUMPY)])
    made = SimpleNamespace(work=work, so_far=nullcontext(), interrupted=False)
    for name, answer in (("_began", made), ("_make", None), ("_result", None), ("reported", 0)):
        monkeypatch.setattr(run, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(heap, "keep", lambda: told.append(None))
    request: Any = SimpleNamespace(share=None, outputs={}, detail=False)
    assert run.judge_peers(request, own_process=own_process) == 0
    assert len(told) == kept
