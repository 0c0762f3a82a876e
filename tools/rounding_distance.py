"""How far transformers' half precision on the CPU is from ours, operation by operation.

    python tools/rounding_distance.py [--dtype bfloat16|float16] [--json FILE]

Each operation is run by transformers' own module or function (torch, 16 bits) and by the reference's emulation
(`Numerics` on NumPy) under eager, sdpa and flash, on the same inputs of the 270m geometry. Printed by profile:

    same    the share of elements that are equal to the bit
    ulps    the largest difference, in steps of the type (float32's for the loss)
    legal   the largest difference, over the largest that either profile has from the float64 truth: up to 2, one on
            either side, the two are no farther from each other than legal roundings are from the truth
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, installed or not

import ml_dtypes
import numpy as np
import torch
from rounding.operations import OPERATIONS, PROFILES, Array, Kit

from t5g2ref.dtypes import HALF, DType
from t5g2ref.files import write_text
from t5g2ref.numerics import EXACT, Numerics, Profile


@dataclass(frozen=True)
class Row:
    """One operation under one profile; see the module's page."""

    operation: str
    profile: str
    same: float
    ulps: int
    legal: float


def as_array(tensor: torch.Tensor) -> Array:
    """In the tensor's own type."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def steps(a: Array, b: Array) -> Array:
    """How many numbers of their type lie between a and b, one counted; −0 and 0 are the same."""

    def ordinal(x: Array) -> Array:
        bits = np.ascontiguousarray(x).view(f"u{x.itemsize}").astype(np.int64)
        sign = 1 << (8 * x.itemsize - 1)
        return np.where(bits & sign, -(bits ^ sign), bits)

    return np.asarray(np.abs(ordinal(a) - ordinal(b)))


def compared(name: str, dtype: DType) -> Iterator[Row]:
    """The rows of one operation, a profile each."""
    with torch.no_grad():
        tensor, ours = OPERATIONS[name](Kit(dtype))
    theirs = as_array(tensor)
    truth = np.asarray(ours(Numerics("float64", EXACT, embed_dtype=dtype)), np.float64)
    found = {profile: np.asarray(ours(Numerics(dtype, profile))) for profile in PROFILES}
    legal = max(float(np.abs(value - truth).max()) for value in found.values())
    for profile, value in found.items():
        yield _row(name, profile, theirs, value, legal)


def _row(name: str, profile: Profile, theirs: Array, value: Array, legal: float) -> Row:
    assert theirs.shape == value.shape, f"{name}: {theirs.shape} and {value.shape}"
    apart = steps(theirs, value.astype(theirs.dtype))
    difference = np.abs(theirs.astype(np.float64) - value.astype(np.float64)).max()
    if not np.isfinite(difference):
        raise ValueError(f"{name}: a value is not finite")
    share = float((apart == 0).mean())
    return Row(
        name, profile.name, share, int(apart.max()), float(difference / legal) if legal else float(difference > 0)
    )


def table(rows: list[Row]) -> str:
    """Markdown: one line an operation, the profiles side by side."""
    heads = "".join(f" {profile.name}: same | ulps | legal |" for profile in PROFILES)
    lines = [f"| operation |{heads}", "|---|" + "---:|" * 3 * len(PROFILES)]
    for name in dict.fromkeys(row.operation for row in rows):
        cells = [f"{_percent(r.same)} | {r.ulps} | {r.legal:.2f}" for r in rows if r.operation == name]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    """100 % is said of all alone."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.99):.2f} %"


def main(arguments: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--dtype", choices=list(HALF), help="both where none is named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    options = parser.parse_args(arguments)
    rows = {
        dtype: [row for name in OPERATIONS for row in compared(name, dtype)]
        for dtype in ([options.dtype] if options.dtype else list(HALF))
    }
    for dtype, found in rows.items():
        print(f"{dtype}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}\n\n{table(found)}\n")
    if options.json:
        document = {dtype: [asdict(row) for row in found] for dtype, found in rows.items()}
        write_text(options.json, json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
