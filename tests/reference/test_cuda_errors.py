"""What is missing or amiss with CUDA, said in plain words; on a stand-in for CuPy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cupy import GIB, BlasError, CompileException, CudaError, DynamicLibNotFoundError, OutOfMemory, Stream, now

import t5g2ref.backend.cuda
from t5g2ref import backend as backends
from t5g2ref.backend import Backend, BackendError


def refused(index: int = 0, **arguments: Any) -> str:
    with pytest.raises(BackendError) as error:
        t5g2ref.backend.cuda.backend(index, **arguments)
    return str(error.value)


INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
NO_DEVICE = "cudaErrorNoDevice: no CUDA-capable device is detected"
ERRORS: list[tuple[dict[str, Any], list[str]]] = [
    ({"release": "13.6.0"}, ["CuPy 13.6.0 is too old, expected 14 or later", 'pip install "t5g2ref[cuda13]" where']),
    ({"failing": INSUFFICIENT, "driver": 0}, ["there is no NVIDIA driver: install", "--gpus all", "backend numpy"]),
    (
        {"failing": INSUFFICIENT, "driver": 12040},
        ["driver is for CUDA 12.4, CuPy was built for 13.2: update the driver, or", '"t5g2ref[cuda12]" in place of'],
    ),
    ({"failing": INSUFFICIENT, "driver": 11080}, ["driver is for CUDA 11.8, CuPy was built for 13.2: update the"]),
    ({"failing": NO_DEVICE}, ["there is no CUDA device: see whether nvidia-smi lists a card"]),
    ({"count": 0}, ["there is no CUDA device: see whether nvidia-smi lists a card"]),
    ({"failing": "cudaErrorUnknown: unknown error"}, ["CUDA does not start: cudaErrorUnknown: unknown error; see"]),
    (
        {"starts": "cudaErrorDevicesUnavailable: busy"},
        ["CUDA device 0 does not start: cudaErrorDevicesUnavailable: busy; see who uses it with nvidia-smi"],
    ),
]


@pytest.mark.parametrize(("facts", "words"), ERRORS, ids=lambda item: str(item)[:40])
def test_what_is_missing_is_said(install: Any, facts: dict[str, Any], words: list[str]) -> None:
    install(**facts)
    message = refused()
    assert all(word in message for word in words), message
    assert "hides" not in message  # CUDA_VISIBLE_DEVICES is not set


MISSING = 'Failure finding "libcublasLt.so.13 or libcublasLt.so.12": No such file: libcublasLt.so.13, No such file'


@pytest.mark.parametrize("what", ["cublas", "nvrtc"])
@pytest.mark.parametrize("kind", [ImportError, OSError, DynamicLibNotFoundError, RuntimeError])
def test_cuda_libraries_that_are_missing(install: Any, kind: type[Exception], what: str) -> None:
    """CuPy's wheels alone have neither, and it imports all the same."""
    install(without=(what, kind(f"\n{MISSING}\n\n")))
    assert refused() == (
        f"CuPy does not find CUDA's libraries, cuBLAS and the compiler NVRTC: {kind.__name__}: {MISSING}. They do not "
        'come with CuPy alone: pip install "cupy-cuda13x[ctk]", or "cupy-cuda12x[ctk]" where that is the CuPy that '
        "`pip list` shows; or install the CUDA toolkit of that version"
    )


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("ones", CompileException("nvrtc: error: invalid value for --gpu-architecture (-arch)\n\n"), "(-arch). CUDA"),
        ("ones", CompileException("a.cuh(5): catastrophic error: no cuda_fp16.h\n" + 1000 * "x\n"), "fp16.h. CUDA 13"),
        (
            "ones",
            CudaError("cudaErrorNoKernelImageForDevice: no image"),
            ": CudaError: cudaErrorNoKernelImageForDevice",
        ),
        ("create", BlasError("CUBLAS_STATUS_ARCH_MISMATCH"), "BlasError: CUBLAS_STATUS_ARCH_MISMATCH. CUDA 13"),
        ("create", BlasError("CUBLAS_STATUS_NOT_INITIALIZED"), "BlasError: CUBLAS_STATUS_NOT_INITIALIZED. CUDA 13"),
        ("create", RuntimeError(), "has: RuntimeError. CUDA 13"),
    ],
    ids=str,
)
def test_a_card_that_this_cupy_cannot_use(install: Any, what: str, error: Exception, said: str) -> None:
    install(without=(what, error))
    message = refused(1)
    assert message.startswith(
        "CuPy 14.2.0 for CUDA 13.2 cannot compile or run for compute capability 7.0, which CUDA device 1 has: "
    )
    assert said in message
    assert (
        'CUDA 13 knows 7.5 and later; for an older card uninstall CuPy, then pip install "t5g2ref[cuda12]"' in message
    )
    assert len(message) < 1000  # not all that a compiler has to say


@pytest.mark.parametrize(
    ("what", "error"), [("ones", OutOfMemory(512, GIB)), ("create", BlasError("CUBLAS_STATUS_ALLOC_FAILED"))], ids=str
)
def test_a_card_that_is_full(install: Any, what: str, error: Exception) -> None:
    install(without=(what, error))
    message = refused()
    assert message.startswith("CUDA device 0 has no memory left in which CUDA's libraries could start: ")
    assert message.endswith("; close what else holds it (nvidia-smi lists it)")


def test_the_trial_leaves_nothing(install: Any) -> None:
    cupy = install()
    t5g2ref.backend.cuda.backend(1)
    assert not cupy.cuda.cublas.handles
    assert now() == (None, None, None)


@pytest.mark.parametrize("facts", [{"failing": NO_DEVICE}, {"count": 0}])
def test_hidden_cards_are_hinted_at(install: Any, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]) -> None:
    install(**facts)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "(CUDA_VISIBLE_DEVICES is '-1' and hides every card" in refused()


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    message = refused()
    assert message.startswith('CuPy is not installed: pip install "t5g2ref[cuda13]" where `nvidia-smi` prints CUDA')
    assert '"t5g2ref[cuda12]" where it prints 12' in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise ImportError('libcudart.so.13: cannot open')", "libcudart.so.13: cannot open"),
        ("import no_such_part_of_cupy", "No module named 'no_such_part_of_cupy'"),
        ("raise OSError('libcuda.so.1: wrong ELF class')", "wrong ELF class"),
    ],
)
def test_a_broken_cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "cupy.py").write_text(line)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    message = refused()
    assert message.startswith("CuPy is installed but does not import: ")
    assert said in message
    assert "uninstall every cupy package" in message


def test_a_numpy_without_bfloat16_in_cupy(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setattr(np, "__version__", "2.0.2")
    assert (
        'found NumPy 2.0.2, with which CuPy has no bfloat16; expected 2.1.2 or later: pip install "numpy' in refused()
    )


@pytest.mark.parametrize(
    ("count", "index", "words"),
    [
        (2, 2, "there is no CUDA device 2: devices 0 to 1 are there"),
        (1, 1, "there is no CUDA device 1: device 0 alone is there"),
        (1, -1, "there is no CUDA device -1: device 0 alone is there"),
    ],
)
def test_indices(install: Any, monkeypatch: pytest.MonkeyPatch, count: int, index: int, words: str) -> None:
    install(count=count)
    assert refused(index) == words
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert refused(index).startswith(f"{words} (CUDA_VISIBLE_DEVICES is '3'")


def test_arguments(install: Any) -> None:
    install()
    assert "memory_limit is 0, expected a positive number of bytes" in refused(memory_limit=0)
    assert "the stream belongs to device 1, expected one of device 0" in refused(stream=Stream(1))


def test_names(install: Any) -> None:
    install()
    first, second = backends.find("cupy"), backends.find("cupy:1")
    assert (first.name, second.name) == ("cupy", "cupy:1")
    assert (first.index, second.index) == (0, 1)  # type: ignore[attr-defined]
    assert first.native_half
    assert first.block_rows == 1024
    assert list(first.twins) == ["rms_norm"]
    assert second.describe() == {
        "device": "cupy:1, Card 1",
        "driver": "CUDA 13.1",
        "runtime": "CUDA 13.2",
        "cupy": "14.2.0",
        "numpy": np.__version__,
    }
    assert Backend().describe() == {"numpy": np.__version__}


def test_the_fast_backend_is_the_same_device_with_more_twins(install: Any) -> None:
    install()
    plain, *fast = (backends.find(name) for name in ("cupy", "cupy-fast", "cupy-fast:0", "cupy-fast:1"))
    assert [(b.name, b.index) for b in fast] == [("cupy-fast", 0), ("cupy-fast", 0), ("cupy-fast:1", 1)]  # type: ignore[attr-defined]
    assert set(plain.twins) == {"rms_norm"}
    assert all({"rms_norm", "attend"} <= set(b.twins) for b in fast)
    with pytest.raises(BackendError, match="there is no CUDA device 2"):
        backends.find("cupy-fast:2")
