"""The steps of `gpu_check.py`: a command each, run to its end on a card, here or on a worker of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conformance.exchange.plain import PlainError
from conformance.sweep.engine import Engine
from conformance.sweep.task import PROCESS, Task

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
JUDGE = [PYTHON, "-m", "conformance", "--no-progress"]
DEVICE = ["--backend", "cupy", "--synthetic"]
KNOWN = ["--known", "conformance/published/known/transformers.toml"]
HALF = ["--lane", "fp16"]
FAST = [part for dtype in ("float32", "bfloat16", "float16") for part in ("--peer", f"t5g2ref:cupy:{dtype}:fast")]
OURS = [part for dtype in ("float32", "bfloat16", "float16") for part in ("--peer", f"t5g2ref:cupy:{dtype}")]
STEPS: dict[str, tuple[str, list[str]]] = {
    "tests": ("the tests marked gpu", [PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]),
    "tiny": ("transformers on cuda, tiny", [*JUDGE, "--backend", "cupy", "--json", "{out}/tiny.json"]),
    "tiny-fast": (
        "the kernels of cupy-fast against the clear ones, tiny",
        [*JUDGE, "--backend", "cupy", *FAST, "--json", "{out}/tiny-fast.json"],
    ),
    "270m-fast": (
        "the kernels of cupy-fast against the clear ones, 270m",
        [*JUDGE, *DEVICE, "--ckpt", "270m", *FAST[:4], "--json", "{out}/270m-fast.json"],
    ),
    "tiny-ours": ("ours on CuPy against NumPy, tiny", [*JUDGE, *OURS, "--json", "{out}/tiny-ours.json"]),
    **{
        f"{size}": (
            f"transformers on cuda, {size}",
            [*JUDGE, *DEVICE, "--ckpt", size, *KNOWN, "--json", f"{{out}}/{size}.json"],
        )
        for size in ("270m", "1b")
    },
    "tiny-half": (
        "transformers on cuda in float16, tiny",
        [*JUDGE, "--backend", "cupy", *HALF, "--json", "{out}/tiny-half.json"],
    ),
    **{
        f"{size}-half": (
            f"transformers on cuda in float16, {size}, calm weights",
            [*JUDGE, *DEVICE, "--ckpt", size, "--calm", *HALF, "--json", f"{{out}}/{size}-half.json"],
        )
        for size in ("270m", "1b")
    },
    "270m-ours": (
        "ours on CuPy against CuPy in float64, 270m: the same kernels on both sides, so it shows rounding only",
        [*JUDGE, *DEVICE, "--ckpt", "270m", *OURS[:4], "--json", "{out}/270m-ours.json"],
    ),
    "270m-calm": (
        "the same in float16, calm weights: it cannot hold the massive activations",
        [*JUDGE, *DEVICE, "--ckpt", "270m", "--calm", *OURS[4:], "--json", "{out}/270m-calm.json"],
    ),
    "bench": (
        "ours and transformers side by side, 1b",
        [
            PYTHON,
            "tools/bench.py",
            "--backend",
            "cupy,cupy-fast",
            "--ckpt",
            "1b",
            "--synthetic",
            "--json",
            "{out}/bench.json",
        ],
    ),
}
ALONE = ("bench",)  # steps that are timed: no other one runs beside them


@dataclass(frozen=True)
class Ended:
    """A step that has ended.

    Args:
        log, report: what it printed, and the JSON that it wrote; "" for none.
    """

    status: int
    seconds: float
    log: str
    report: str = ""


def ended(names: Sequence[str], engine: Engine) -> Iterator[tuple[str, Ended]]:
    """(step, what came of it) as they end; those that are timed come last, one after the other."""
    task = Task(_cards, (visible(),), _on_a_card, lost=_lost, plain=_plain, checked=_checked)
    beside = [name for name in names if name not in ALONE]
    if engine.here(beside) or not beside:
        yield from ((name, step(name)) for name in beside)
    else:
        yield from engine.done(task, beside)
    for name in (name for name in names if name in ALONE):
        yield from engine.done(task, [name]) if engine.cluster else [(name, step(name))]


def visible() -> tuple[str, ...]:
    """The cards that the environment names; none where it leaves that open."""
    return tuple(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))


def _cards(named: tuple[str, ...]) -> str:
    """The card of this process: as many as it is, of those that are named here; on a cluster, what its worker has."""
    number = os.environ.get(PROCESS)
    if number is None:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named[int(number) % len(named)] if named else number


def _on_a_card(card: str, name: str) -> Ended:
    return step(name, card)


def step(name: str, card: str | None = None) -> Ended:
    """Run one step. A process among others has a card, or "" for what it finds, and leaves threads to the step."""
    own = {key: value for key, value in os.environ.items() if card is None or not key.endswith("_NUM_THREADS")}
    own |= {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | ({"CUDA_VISIBLE_DEVICES": card} if card else {})
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        command = [part.format(out=folder) for part in STEPS[name][1]]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=own,
            check=False,
        )
        report = Path(folder, f"{name}.json")
        text = report.read_text(encoding="utf-8") if report.exists() else ""
    return Ended(done.returncode, time.perf_counter() - began, done.stdout.decode(errors="replace"), text)


def _lost(_: str, how: str) -> Ended:
    return Ended(1, 0.0, f"{how}\n")


def _plain(_: str, found: Ended) -> list[Any]:
    return [found.status, found.seconds, found.log, found.report]


def _checked(name: str, raw: Any) -> Ended:
    """What became of a step on another machine."""
    kinds = [type(value) for value in raw] if isinstance(raw, list) else None
    if kinds != [int, float, str, str]:
        raise PlainError(f"expected the status, seconds, log and report of {name}")
    return Ended(*raw)
