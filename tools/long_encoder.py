"""Time and memory of the reference's encoder against the length of its source, on seeded weights.

    python tools/long_encoder.py                       4096 to 32768 tokens, 270m, float32
    python tools/long_encoder.py --lengths 8192 131072

Each length has a process of its own, and goes through the layers up to the first full one: five sliding ones before it.
A layer's seconds are the processor's, of all threads together: the least of its kind, since others on the machine only
add to them. An exponent e says that they grow as length ** e from the first length to the last. Memory is in all, with
the encoder's text weights of these layers, and beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases.ingredients import Kit
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import preset
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import SDPA, Numerics
from t5g2ref.params import shapes, tree
from t5g2ref.trace import Trace

LENGTHS = (4096, 8192, 16_384, 32_768)
LAYER = re.compile(r"encoder\.text_model\.layers\.(\d+)")
KINDS = {"sliding": "sliding_attention", "full": "full_attention"}
GIB = 1 << 30


class Clock(Trace):
    """Notes when each layer of the encoder ends. To the model it is off: it asks for no mask, which would be S × S, and
    for no whole array inside a layer."""

    active, parts = False, True

    def __init__(self, ends: dict[int, float], prefix: str = "") -> None:
        super().__init__(self._note, prefix)
        self._ends = ends

    def _note(self, name: str, value: Any) -> Any:
        if found := LAYER.fullmatch(name):
            self._ends[int(found[1])] = time.process_time()
        elif name == "encoder.text_model.inputs_embeds":
            self._ends[-1] = time.process_time()
        return value

    def at(self, name: str) -> Trace:
        return Clock(self._ends, f"{self._prefix}{name}.")

    def part(self, first: int) -> Trace:
        return self

    def lazy(self, *_: Any) -> None:
        return None


def measured(ckpt: str, length: int) -> dict[str, float]:
    """Processor seconds of a layer of each kind, and GiB in all and beside the weights; in this process."""
    whole = preset(ckpt)
    kinds = whole.encoder.layer_types[: whole.encoder.layer_types.index(KINDS["full"]) + 1]
    config = replace(whole, encoder=replace(whole.encoder, num_hidden_layers=len(kinds), layer_types=kinds))
    tensors = Synthetic(whole)
    empty = {name: np.zeros(shape, np.float32) for name, shape in shapes(config).items()}  # never touched
    used = {name: tensors[name] for name in empty if name.startswith("encoder.text_model.")}
    model = T5Gemma2(config, tree(empty | used), Numerics("float32", SDPA))
    before, ends = _peak(reset=True), dict[int, float]()
    model.encode(Kit(config, np.random.default_rng(length)).ids(1, length), trace=Clock(ends))
    found = {kind: min(ends[i] - ends[i - 1] for i, of in enumerate(kinds) if of == at) for kind, at in KINDS.items()}
    return found | {"peak": _peak() / GIB, "beside": (_peak() - before) / GIB}


def _peak(*, reset: bool = False) -> int:
    """The most memory that this process has had since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def exponent(lengths: list[int], seconds: list[float]) -> float:
    """e where seconds grow as length ** e, from the first to the last."""
    return math.log(seconds[-1] / seconds[0]) / math.log(lengths[-1] / lengths[0])


def main() -> int:
    """Measure each length and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="270m", help="a released geometry")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), metavar="N")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.ckpt, given.lengths[0])))
        return 0
    print(f"{'tokens':>8} {'sliding s':>10} {'full s':>10} {'GiB in all':>11} {'beside weights':>15}", flush=True)
    rows = []
    for length in given.lengths:
        command = [sys.executable, __file__, "--one", "--ckpt", given.ckpt]
        done = subprocess.run([*command, "--lengths", str(length)], stdout=subprocess.PIPE, check=True)
        rows.append(row := json.loads(done.stdout))
        print(
            f"{length:8} {row['sliding']:10.2f} {row['full']:10.2f} {row['peak']:11.2f} {row['beside']:15.2f}",
            flush=True,
        )
    if len(rows) > 1:
        growth = {kind: exponent(given.lengths, [row[kind] for row in rows]) for kind in KINDS}
        print(f"exponent {growth['sliding']:10.2f} {growth['full']:10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
