"""kernels.cu, compiled at its first use on a device, and launched. CuPy keeps what it compiled on disk."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import cupy
import ml_dtypes
import numpy as np

TYPES = {  # by dtype, or by item size where a kernel only copies
    np.dtype(np.float64): "double",
    np.dtype(np.float32): "float",
    np.dtype(np.float16): "f16",
    np.dtype(ml_dtypes.bfloat16): "bf16",
    1: "unsigned char",
    2: "unsigned short",
    4: "unsigned",
    8: "i64",
}
FLOATS = ("double", "float", "f16", "bf16")
SINGLES = ("rms_norm", "add_norm", "turned_norm", "layer_norm", "gelu_tanh", "gated_gelu", "biased", "rotate")
Types = tuple[Any, ...]
FUNCTIONS: dict[tuple[str, Types, int], Any] = {}  # those in use, by name, types and device


def names() -> list[str]:
    """Every instance that is compiled."""
    found = [f"{name}<{kind}>" for name in SINGLES for kind in FLOATS]
    found += [f"masked_softmax<{kind}, {kind}>" for kind in FLOATS]
    found += ["masked_softmax<float, f16>", "masked_softmax<float, bf16>"]
    found += [f"{name}<{kind}>" for name in ("running", "running_few") for kind in FLOATS[:2]]
    found += [f"flash_softmax<float, {kind}>" for kind in FLOATS[1:]]
    found += [f"across_ties<{kind}>" for kind in FLOATS[2:]]
    return [*found, *(f"join<{TYPES[size]}>" for size in (1, 2, 4, 8)), "visible"]


@cache
def module(device: int) -> Any:
    """All kernels for one device; without contraction to fused multiply-add, see kernels.cu."""
    source = files(__package__).joinpath("kernels.cu").read_text(encoding="utf-8")
    with cupy.cuda.Device(device):
        return cupy.RawModule(code=source, options=("--std=c++17", "--fmad=false"), name_expressions=names())


def launch(name: str, types: Types, args: tuple[Any, ...], grid: int | tuple[int, ...], threads: int) -> None:
    """Queue a kernel for `types`, `grid` blocks of `threads`; nothing at all where there are no blocks."""
    blocks = (grid,) if isinstance(grid, int) else grid
    if 0 in blocks:
        return
    key = name, types, cupy.cuda.runtime.getDevice()
    function = FUNCTIONS.get(key)
    if function is None:
        spelled = f"{name}<{', '.join(TYPES[kind] for kind in types)}>" if types else name
        function = FUNCTIONS[key] = module(key[2]).get_function(spelled)
    function(blocks, (threads,), args)
