"""The benchmark's command line: what can be asked for, its defaults, and its help."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.checkpoints import HUB
from conformance.errors import UsageError
from t5g2ref.backend import NUMPY, Backend, find
from t5g2ref.dtypes import HALF

HELP = """\
Time t5g2ref and transformers in one process, taking turns, on a CPU or a GPU. Batch of one.

  encode   the text encoder on 512 tokens
  forward  512 encoder and 128 decoder tokens, with all logits
  decode   a cached step over a 512-token source, with its logits and the next id
  vision   one image through the tower and the projector
  load     a checkpoint from disk to the device
  truth    our float64 forward of 512 text tokens and an image; transformers has no such thing
  verdict  `python -m conformance --quick`, whole; only where it is asked for by name

A toy checkpoint gets shorter lengths; the output says which. Before an item is timed both sides run
it and their results are compared.

exit status   0 measured   1 the results are further apart than rounding, or an item failed
              2 bad usage or environment
"""

PAIRED = ("encode", "forward", "decode", "vision")
ITEMS = (*PAIRED, "load", "truth", "verdict")

EXAMPLES = """\
examples
  python tools/bench.py                           tiny, NumPy and torch on the CPU (under a minute)
  python tools/bench.py --ckpt 270m --threads 2   a real geometry on two threads (minutes)
  python tools/bench.py --backend cupy            1b on the GPU: every item, float32 and bfloat16
  python tools/bench.py --backend cupy --what decode --dtype bfloat16 --repeats 30
  python tools/bench.py --backend cupy --ckpt FOLDER --what load --what truth --json bench.json

A size (270m, 1b, 4b) whose weights are not at hand is timed on seeded ones at its geometry, and the
output says so; nothing is downloaded. A ratio of an item during which others took 5 % of the cores
or more is not printed: "busy" stands in its place, and null in the JSON.
"""


@dataclass(frozen=True)
class Options:
    """What was asked for, with every default filled in."""

    ckpt: str
    synthetic: bool
    backend: Backend
    device: str
    dtypes: tuple[Any, ...]
    attention: str
    items: tuple[str, ...]
    repeats: int | None
    threads: int | None
    json: Path | None

    def peer(self, dtype: str) -> str:
        """The name of transformers' side."""
        return f"transformers:{self.attention}:{dtype}:{self.device}"


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python tools/bench.py", description=HELP, epilog=EXAMPLES, formatter_class=form)
    top.add_argument("--ckpt", help=f"tiny, {', '.join(HUB)} or a folder (default: tiny on numpy, 1b on cupy)")
    top.add_argument("--synthetic", action="store_true", help="seeded weights even where the real ones are at hand")
    top.add_argument("--backend", default="numpy", help="numpy, cupy, or cupy:1 for the second GPU (default: numpy)")
    top.add_argument(
        "--dtype",
        action="append",
        choices=("float32", "bfloat16", "float16"),
        help="repeatable (default: float32; on cupy float32 and bfloat16)",
    )
    top.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"), help="transformers' (default: sdpa)")
    top.add_argument(
        "--what",
        action="append",
        metavar="GLOB",
        help=f"repeatable, of {', '.join(ITEMS)} (default: all; on numpy the first four)",
    )
    top.add_argument("--repeats", type=int, metavar="N", help="default: what fits in 4 s, at least 5; load: at most 3")
    top.add_argument("--threads", type=int, metavar="N", help="of the BLAS and of torch, on a CPU")
    top.add_argument("--json", type=Path, metavar="FILE", help="write everything, each repeat's time included")
    return top


def options_of(given: argparse.Namespace) -> Options:
    """Raises UsageError and BackendError."""
    backend = find(given.backend)
    on_cpu = backend is NUMPY
    dtypes = tuple(dict.fromkeys(given.dtype or (("float32",) if on_cpu else ("float32", "bfloat16"))))
    globs = given.what or (PAIRED if on_cpu else ITEMS[:-1])
    _check(given, on_cpu, dtypes, globs)
    index = given.backend.partition(":")[2]
    return Options(
        ckpt=given.ckpt or ("tiny" if on_cpu else "1b"),
        synthetic=given.synthetic,
        backend=backend,
        device="cpu" if on_cpu else f"cuda:{index}" if int(index or 0) else "cuda",
        dtypes=dtypes,
        attention=given.attention,
        items=tuple(item for item in ITEMS if any(fnmatch.fnmatch(item, glob) for glob in globs)),
        repeats=given.repeats,
        threads=given.threads,
        json=given.json,
    )


def _check(given: argparse.Namespace, on_cpu: bool, dtypes: tuple[str, ...], globs: Sequence[str]) -> None:
    half = [dtype for dtype in dtypes if dtype in HALF]
    if on_cpu and half:
        raise UsageError(f"--dtype {half[0]}: NumPy only emulates it, which says nothing about speed; give float32")
    for option in ("repeats", "threads"):
        value = getattr(given, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option} {value}: expected at least 1")
    if given.threads is not None and not on_cpu:
        raise UsageError("--threads: only where both sides run on the CPU, which is --backend numpy")
    for glob in globs:
        if not fnmatch.filter(ITEMS, glob):
            raise UsageError(f"--what {glob}: no such item; there are {', '.join(ITEMS)}")
