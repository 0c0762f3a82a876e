"""What the numbers were measured with: versions, processor, threads, graphics card."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmark.timing import on_cpu
from t5g2ref import __version__
from t5g2ref.backend import Backend


def versions(backend: Backend) -> dict[str, str]:
    """Names and versions, in the order of the report."""
    found = {"t5g2ref": __version__, "python": platform.python_version(), **backend.describe()}
    found |= {name: _installed(name) for name in ("torch", "transformers", "ctranslate2")}
    return found | (_cpu() if on_cpu(backend) else {"NVIDIA driver": _driver()})


def name(backend: Backend, threads: int | None = None) -> str:
    """The machine in a few words, for a caption."""
    if not on_cpu(backend):
        return backend.describe().get("device", backend.name).removeprefix(f"{backend.name}, ")
    return f"{_processor()}, {os.cpu_count()} cores" + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _cpu() -> dict[str, str]:
    import threadpoolctl
    import torch

    blas = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return {
        "BLAS": ", ".join(_described(pool) for pool in blas),
        "torch threads": str(torch.get_num_threads()),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
    }


def _described(pool: dict[str, Any]) -> str:
    kernels = pool.get("architecture", "unknown")
    return f"{pool['internal_api']} {pool['version']}, {kernels} kernels, {pool['num_threads']} threads"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout.split()
    except (OSError, subprocess.SubprocessError):  # not there, or it does not answer
        return "not known"
    return answer[0] if answer else "not known"
