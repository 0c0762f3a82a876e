"""CUDA kernels on a CPU, one fiber a thread: `cuda_on_cpu.h` says how. Errors are found without a card."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5g2ref.backend.cuda.decoding.plan import Plan, source
from t5g2ref.backend.cuda.decoding.session import Arguments

HEADER, FLASH = (Path(__file__).with_name(name) for name in ("cuda_on_cpu.h", "flash_on_cpu.h"))
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


def launch_flash(kernel: Any, parts: tuple[str, ...], grid: tuple[int, ...], args: tuple[Any, ...], late: bool) -> None:
    """A kernel of attention, whose text is in `parts`. `late`: see flash_on_cpu.h."""
    folder = files("t5g2ref.backend.cuda")
    code = "".join(folder.joinpath(part).read_text(encoding="utf-8") for part in parts)
    entry = (
        'extern "C" void run(const int* grid, int threads, long shared, void** values) '
        f"{{ emu::launch_with({kernel.name}<{kernel.types}>, grid, threads, shared + AWRY, values); }}"
    )
    run: Any = library(f'{"#define LATE" * late}\n#include "{FLASH}"\n{code}\n{entry}\n').run
    values = [as_c(x) for x in args]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(x) for x in values))
    run((ctypes.c_int * 3)(*grid), kernel.threads, ctypes.c_long(kernel.shared), pointers)


def as_c(x: Any) -> Any:
    """An argument as a kernel of attention takes it: an address, 64 bits, or a double."""
    if isinstance(x, float):  # a float64 of NumPy too
        return ctypes.c_double(x)
    return ctypes.c_int64(int(x)) if isinstance(x, int | np.integer) else ctypes.c_void_p(x.ctypes.data)
