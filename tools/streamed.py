"""Run a checkpoint that is larger than memory, two layers at a time, and print what it took.

    python tools/make_checkpoint.py 4b FOLDER
    python tools/streamed.py FOLDER [--dtype float64] [--source 16] [--answer 4] [--whole]

One forward of so many ids of a source and an answer. `--whole` reads all weights first: where that is possible, both
must print the same number.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

import t5g2ref
from t5g2ref import streams
from t5g2ref.dtypes import DTYPES

GB = 1e9


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    result = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    result.add_argument("folder", type=Path)
    result.add_argument("--dtype", default="float64", choices=DTYPES)
    result.add_argument("--source", type=int, default=16, help="ids of the source")
    result.add_argument("--answer", type=int, default=4, help="ids of the answer")
    result.add_argument("--whole", action="store_true", help="read all weights first")
    return result


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.source < 1 or options.answer < 1:
        print("streamed: --source and --answer: expected at least 1", file=sys.stderr)
        return 2
    before, began = _peak(), time.perf_counter()
    try:
        model = t5g2ref.load(options.folder, options.dtype, stream=not options.whole)
        ids = np.random.default_rng(0).integers(3, 255, (2, max(options.source, options.answer)))
        logits = model(ids[:1, : options.source], ids[1:, : options.answer]).logits
    except (t5g2ref.ConfigError, t5g2ref.WeightsError) as error:
        print(f"streamed: {error}", file=sys.stderr)
        return 2
    seconds, size = time.perf_counter() - began, sum(f.stat().st_size for f in options.folder.glob("*.safetensors"))
    print(
        f"{size / GB:.2f} GB of weights, {options.dtype}, {options.source} + {options.answer} ids: {seconds:.0f} s, "
        f"{(_peak() - before) / GB:.2f} GB of memory; sum of |logits| {float(abs(logits).sum()):.17g}"
    )
    return 0


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(streams.run("streamed", __name__))
