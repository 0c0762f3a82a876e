"""The kernel, compiled for a card and launched with all its processors at once."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import cupy

from t5g2ref.backend.cuda.decoding.plan import WARPS, Plan, source
from t5g2ref.backend.cuda.decoding.session import Arguments

OLDEST = 90  # compute capability of the first cards with a copy engine for shared memory


@cache
def card(device: int) -> tuple[int, int] | None:
    """(processors, bytes of shared memory a block may have); None where the card is too old for the kernel."""
    properties = cupy.cuda.Device(device).attributes
    if int(cupy.cuda.Device(device).compute_capability) < OLDEST or not properties["CooperativeLaunch"]:
        return None
    return properties["MultiProcessorCount"], properties["MaxSharedMemoryPerBlockOptin"]


@cache
def kernel(device: int, defines: str, shared: int) -> Any:
    """The kernel for one device and one plan. CuPy keeps what it compiled on disk."""
    with cupy.cuda.Device(device):
        module = cupy.RawModule(code=defines + source(), options=("--std=c++17", "--fmad=false"))
        function = module.get_function("decode")
        function.max_dynamic_shared_size_bytes = shared
        return function


def launch(arguments: Arguments, plan: Plan, show: bool = False) -> None:
    """Queue the kernel in the current stream. It is a cooperative launch: its blocks wait for each other."""
    function = kernel(cupy.cuda.runtime.getDevice(), plan.defines(show), plan.shared)
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
    grid, threads, stream = (plan.processors, 1, 1), (WARPS * 32, 1, 1), cupy.cuda.get_current_stream().ptr
    cupy.cuda.driver.launchCooperativeKernel(
        function.kernel.ptr, *grid, *threads, plan.shared, stream, ctypes.addressof(pointers)
    )
