"""Environments, one a release: each a venv that may stand on another Python's packages, so that torch is had once."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import sysconfig
from pathlib import Path

from released.listed import Package

PLACES = "import site; print('\\n'.join(site.getsitepackages()))"


def made(root: Path, package: Package, version: str, base: str | None) -> Path:
    """The environment's Python; made where it is not there yet.

    Args:
        base: a Python whose packages are seen behind the environment's own; None for none.

    Raises:
        subprocess.CalledProcessError: pip could not install it; with what it said.
    """
    folder = root / f"{package.name}-{version}"
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{folder.name}.lock").open("w") as lock:  # another process may be making it
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(folder, package, version, base)


def _made(folder: Path, package: Package, version: str, base: str | None) -> Path:
    python, mark = folder / "bin" / "python", folder / "whole"
    if mark.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    if base:
        ask = subprocess.run([base, "-c", PLACES], check=True, capture_output=True, text=True)
        lines = [f"import site; site.addsitedir({place!r})" for place in ask.stdout.splitlines()]
        inside = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
        Path(inside, "base.pth").write_text("\n".join(lines) + "\n")
    wanted = [f"{package.name}=={version}", *package.beside]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *wanted]
    subprocess.run(install, check=True, capture_output=True, text=True)
    mark.touch()
    return python
