"""CUDA kernels on a CPU, one fiber a thread: `cuda_on_cpu.h` says how. Errors are found without a card."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from t5g2ref.backend.cuda.decoding.plan import Plan, source
from t5g2ref.backend.cuda.decoding.session import Arguments

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
ALIGNED = ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")  # as a card, it ends where it is not
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-DEMULATED", "-ffp-contract=off", "-w", *ALIGNED)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which runs CUDA kernels on the CPU")


@cache
def library(text: str) -> ctypes.CDLL:
    """Kernels and their C entries, compiled once a process."""
    folder = Path(tempfile.mkdtemp(prefix="emulated-"))
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    (folder / f"{name}.cpp").write_text(f'#include "{HEADER}"\n{text}', encoding="utf-8")
    subprocess.run(["g++", *FLAGS, "-o", folder / f"{name}.so", folder / f"{name}.cpp"], check=True)
    found = ctypes.CDLL(str(folder / f"{name}.so"))
    shutil.rmtree(folder)  # what is loaded stays
    return found


def launch(arguments: Arguments, plan: Plan, show: bool = False) -> None:
    """The decoding kernel with its blocks side by side, as a card has them."""
    entry = (
        'extern "C" void run(Arguments* a) '
        f"{{ emu::launch(GRID, THREADS, {plan.shared}, true, [&] {{ decode(*a); }}); }}"
    )
    run: Any = library(f"{plan.defines(show)}{source()}\n{entry}\n").run
    run(ctypes.byref(arguments))
