"""Everything that needs a CUDA device, in one command: the GPU tests, the conformance runs, the benchmark.

    python tools/gpu_check.py [--out FOLDER] [--only STEP …] [--skip STEP …]

Each step runs to its end whatever became of those before it; its output goes to FOLDER/STEP.log (and .json where the
step writes one), the last lines of it to the terminal. The exit status is 0 when every step's was. One after the other,
since side by side on one card they wait for each other at every tap: six took longer than their sum. Under CUDA's MPS
(`nvidia-cuda-mps-control -d`) three judges started by hand did about twice the comparisons of one. 1b with pictures
needs most of 80 GB for itself.

A fault of our kernels shows only against other ones: `tests` and `tiny-ours` hold them against NumPy, `tiny`, `270m`
and `1b` against torch, and so do those steps with `-half` in float16. `270m-ours` and `270m-calm` have the same kernels
on both sides and show rounding only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
JUDGE = [PYTHON, "-m", "conformance", "--no-progress"]
DEVICE = ["--backend", "cupy", "--synthetic"]
KNOWN = ["--known", "conformance/published/known/transformers.toml"]
HALF = ["--lane", "fp16"]
OURS = [part for dtype in ("float32", "bfloat16", "float16") for part in ("--peer", f"t5g2ref:cupy:{dtype}")]
STEPS: dict[str, tuple[str, list[str]]] = {
    "tests": ("the tests marked gpu", [PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]),
    "tiny": ("transformers on cuda, tiny", [*JUDGE, "--backend", "cupy", "--json", "{out}/tiny.json"]),
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
        [PYTHON, "tools/bench.py", "--backend", "cupy", "--ckpt", "1b", "--synthetic", "--json", "{out}/bench.json"],
    ),
}


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    steps = "\n".join(f"  {name:10} {what}" for name, (what, _) in STEPS.items())
    result = argparse.ArgumentParser(description=__doc__, epilog=f"steps\n{steps}", formatter_class=form)
    result.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="FOLDER", help="default: gpu-check")
    result.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help="these steps alone")
    result.add_argument("--skip", nargs="+", choices=STEPS, default=[], metavar="STEP", help="all but these")
    result.add_argument("--tail", type=int, default=12, metavar="N", help="lines of each log to print (12)")
    return result


def step(name: str, out: Path, tail: int) -> tuple[int, float]:
    """Run one step; returns its exit status and its seconds."""
    what, command = STEPS[name]
    command = [part.format(out=out) for part in command]
    began = time.perf_counter()
    with (out / f"{name}.log").open("w") as log:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        status = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, check=False
        ).returncode
    lines = (out / f"{name}.log").read_text(errors="replace").splitlines()
    shown = "\n".join(f"   {line}" for line in lines[-tail:])
    print(f"\n== {name}: {what}\n   {' '.join(command)}\n{shown}", flush=True)
    return status, time.perf_counter() - began


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in STEPS if name in (options.only or STEPS) and name not in options.skip]
    results = {name: step(name, options.out, options.tail) for name in names}
    print()
    for name, (status, seconds) in results.items():
        print(f"{'ok' if status == 0 else f'FAILED ({status})':12} {seconds:7.1f} s  {name:10} {STEPS[name][0]}")
    return int(any(status for status, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
