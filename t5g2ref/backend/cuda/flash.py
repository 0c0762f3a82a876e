"""Attention in blocks with online softmax: a twin of `attention.attend`, one launch and no score in memory.

It reads queries, keys and values where they lie, both groups of keys too, and works the masks out from their rules.
Half types are multiplied on the matrix units, float32 is not (and is never TF32). Its places of rounding are those of
`Profile.flash_keys`; a profile that asks for others gets the definition.

    flash.cu         what the kernels share: tiles, masks, copies
    flash_half.cu    half types, from compute capability 8.0 on
    flash_hopper.cu  half types on 9.0, for the usual widths of a head
    flash_float.cu   float32
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from itertools import chain
from typing import Any, NamedTuple

import cupy

from t5g2ref.backend.cuda.kernels import TYPES

Array = Any
WIDTHS = (16, 32, 48, 64, 80, 96, 128, 192, 256)  # of a head; one in between is filled up with zeros
IN_FLOAT = (16, 32, 48, 64, 72, 80, 96, 128)
WIDEST = {"float32": 128, "float16": 256, "bfloat16": 256}
KEYS = 64  # of a step
FAR = 1 << 30  # a bound that no position reaches, and no sum with one overflows
MOST_BLOCKS = 65535  # along the second and third axis of a grid
FEW, LONG = 16, 1024  # rows of a tile that is nearly empty, and keys that one block alone should not go through
NO_KEYS = (0,) * 14
FILES = {  # of each kernel, in one piece
    "flash_float": ("flash.cu", "flash_float.cu"),
    "flash_half": ("flash.cu", "flash_half.cu"),
    "flash_hopper": ("flash.cu", "flash_half.cu", "flash_hopper.cu"),
}
OLDEST, HOPPER = 80, 90  # compute capabilities, ten times: the first with bfloat16, and one with a kernel of its own
ON_HOPPER = {64: 128, 80: 128, 128: 128, 256: 64}  # its widths, and the keys of a step


class Kernel(NamedTuple):
    """An instance of a kernel, and how it is launched."""

    name: str
    types: str  # the template's arguments
    rows: int  # of a tile
    threads: int
    shared: int  # bytes


def attend(
    definition: Callable[..., Array],
    nx: Any,
    q: Array,
    groups: Sequence[Any],
    *,
    scale: float,
    cap: float | None = None,
    first_query: int = 0,
    rows: int | None = None,
) -> Array:
    """One kernel for all queries, whatever `rows`; the result (B, N, T, H) lies in memory as (B, T, N, H)."""
    batch, heads, length, width = q.shape
    kernel = None
    if covered(nx, q, groups, scale, cap):
        kv_heads = groups[0].kv.keys.shape[1]
        lines, *pairs = (dense(x) for x in (q, *chain.from_iterable((g.kv.keys, g.kv.values) for g in groups)))
        device, wide = cupy.cuda.runtime.getDevice(), aligned([lines, *pairs])
        kernel = fitting(device, q.dtype, width, length * heads // kv_heads, kv_heads * batch, wide)
    if kernel is None:
        return definition(nx, q, groups, scale=scale, cap=cap, first_query=first_query, rows=rows)
    out = cupy.ndarray((batch, length, heads, width), q.dtype)
    own, *other = (_group(g, *pairs[2 * i : 2 * i + 2]) for i, g in enumerate(groups))
    rule = (heads // kv_heads, length, width, int(first_query), float(scale), float(cap or 0.0), int(wide))
    tiles = -(-length * heads // kv_heads // kernel.rows)
    args = (lines, *steps(lines), *rule, *own, *(other[0] if other else NO_KEYS), out)
    launch(device, kernel, (tiles, kv_heads, batch), args)
    return out.swapaxes(1, 2)


def covered(nx: Any, q: Array, groups: Sequence[Any], scale: float, cap: float | None) -> bool:
    """Whether the kernels have this call's types, shapes, rules and roundings, and are not slow at it."""
    profile = nx.profile
    if profile.round_scores or profile.running or not 1 <= len(groups) <= 2 or scale <= 0 or (cap or 0.0) < 0:
        return False
    if not 0 < q.shape[-1] <= WIDEST.get(q.dtype.name, 0) or capability(cupy.cuda.runtime.getDevice()) < OLDEST:
        return False
    batch, heads, length, width = q.shape
    kv_heads = groups[0].kv.keys.shape[1]
    if not (q.size and kv_heads and heads % kv_heads == 0 and length * heads < FAR):
        return False
    if max(batch, kv_heads) > MOST_BLOCKS:
        return False
    if not all(_readable(g, q.dtype, (batch, kv_heads, width)) for g in groups):
        return False
    keys = sum(g.kv.length for g in groups)
    return bool(0 < keys < FAR and (length * heads // kv_heads > FEW or keys <= LONG))


def _readable(group: Any, dtype: Any, sizes: tuple[int, int, int]) -> bool:
    """Whether the kernels read this group of keys and its padding within their bounds, and know its rule."""
    keys, values, valid = group.kv.keys, group.kv.values, group.valid
    batch, kv_heads, width = sizes
    if not group.band.by_distance or not keys.dtype == values.dtype == dtype:
        return False
    if not keys.shape == values.shape == (batch, kv_heads, keys.shape[2], width):
        return False
    if valid is None:
        return True
    return bool(valid.dtype == bool and valid.shape[0] in (1, batch) and valid.shape[1] >= keys.shape[2])


@cache
def capability(device: int) -> int:
    return int(cupy.cuda.Device(device).compute_capability)


@cache
def properties(device: int) -> Any:
    return cupy.cuda.runtime.getDeviceProperties(device)


@lru_cache(512)
def fitting(device: int, dtype: Any, width: int, rows: int, tiles: int, wide: bool) -> Kernel | None:
    """The instance for heads of this width, where each of `tiles` has so many rows; `wide` as `aligned` says. None
    where the device has too little shared memory for any."""
    d, card = next(w for w in (IN_FLOAT if dtype.itemsize == 4 else WIDTHS) if w >= width), properties(device)
    if dtype.itemsize == 4:
        found = [Kernel("flash_float", f"{d}", 64, 128, 4 * ((64 + 2 * KEYS) * (d + 4) + 64 * (KEYS + 4)) + KEYS)]
    else:
        found = [_half(TYPES[dtype], d, warps, keys) for warps, keys in ((8, KEYS), (4, KEYS), (4, KEYS // 2))]
        if d < 128 or -(-rows // 128) * tiles < card["multiProcessorCount"]:  # rather more blocks than large ones
            del found[0]
        if wide and capability(device) == HOPPER and d in ON_HOPPER:
            keys = ON_HOPPER[d]
            shared = 1024 + 2 * (128 + 4 * keys) * d + 4 * keys
            found.insert(0, Kernel("flash_hopper", f"{TYPES[dtype]}, {d}, {keys}", 128, 256, shared))
    return next((kernel for kernel in found if kernel.shared <= card["sharedMemPerBlockOptin"]), None)


def _half(name: str, d: int, warps: int, keys: int) -> Kernel:
    bands = 2 if d < 128 else 1  # of 16 rows, of a warp: as many as its registers hold
    rows = 16 * bands * warps
    shared = 2 * (rows + 2 * keys) * (d + 8) + keys
    return Kernel("flash_half", f"{name}, {d}, {warps}, {bands}, {keys}", rows, 32 * warps, shared)


def dense(x: Array) -> Array:
    """x, or a copy of it, with a dense last axis."""
    return x if x.strides[-1] == x.itemsize or x.shape[-1] == 1 else cupy.ascontiguousarray(x)


def steps(x: Array) -> tuple[int, ...]:
    """The first three strides of x, in elements."""
    size = x.itemsize
    return tuple(stride // size for stride in x.strides[:3])


def aligned(arrays: Sequence[Array]) -> bool:
    """Whether every row of the arrays begins at a multiple of 16 bytes and is as long."""
    for x in arrays:
        if x.shape[-1] * x.itemsize % 16 or x.data.ptr % 16:
            return False
        if any(stride % 16 for stride, size in zip(x.strides[:3], x.shape[:3], strict=True) if size > 1):
            return False
    return True


def _group(group: Any, keys: Array, values: Array) -> tuple[Any, ...]:
    """What the kernels are told of a group of keys: see GROUP in flash.cu."""
    band, valid = group.band, group.valid
    bounds = (FAR if bound is None else max(-FAR, min(FAR, bound)) for bound in (band.back, band.ahead))
    padding: tuple[Any, ...] = (0, 0)
    if valid is not None:
        valid = valid if valid.shape[1] < 2 or valid.strides[1] == 1 else cupy.ascontiguousarray(valid)
        padding = (valid, valid.strides[0] if valid.shape[0] > 1 else 0)
    return (keys, *steps(keys), values, *steps(values), keys.shape[2], int(group.kv.start), *bounds, *padding)


@cache
def function(kernel: Kernel, device: int) -> Any:
    """The kernel, compiled for a device. Unlike kernels.cu it may contract a product and a sum to one operation."""
    folder, parts, spelled = files(__package__), FILES[kernel.name], f"{kernel.name}<{kernel.types}>"
    code = "".join(folder.joinpath(part).read_text(encoding="utf-8") for part in parts)
    driver = cupy.cuda.driver
    with cupy.cuda.Device(device):
        if kernel.name == "flash_hopper":
            found = _on_hopper(code, spelled)
        else:
            module = cupy.RawModule(code=code, options=("--std=c++17",), name_expressions=(spelled,))
            found = module.get_function(spelled).kernel
        driver.funcSetAttribute(found.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared)
    return found


def _on_hopper(code: str, spelled: str) -> Any:
    """A kernel for architecture sm_90a, which CuPy does not name to the compiler: so the compiler is called here."""
    nvrtc = cupy.cuda.nvrtc
    program = nvrtc.createProgram(code, "flash.cu", (), ())
    nvrtc.addNameExpression(program, spelled)
    nvrtc.compileProgram(program, ("--std=c++17", "-arch=sm_90a"))
    name, binary = nvrtc.getLoweredName(program, spelled), nvrtc.getCUBIN(program)
    nvrtc.destroyProgram(program)
    module = cupy.cuda.function.Module()
    module.load(binary)
    return module.get_function(name)


def launch(device: int, kernel: Kernel, grid: tuple[int, int, int], args: tuple[Any, ...]) -> None:
    """Queue a kernel for so many tiles, kv heads and batch rows."""
    function(kernel, device)(grid, (kernel.threads,), args, shared_mem=kernel.shared)
