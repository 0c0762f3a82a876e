"""Moves arrays between torch and the judge: weights and inputs in, what the hooks saw out.

bfloat16 crosses as 16-bit words, because neither DLPack nor the CUDA array interface carries it between them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch

from conformance.arrays import device_index, has_device, on_device, to_host
from t5g2ref.backend import Backend

Array = Any


def from_array(value: Array, dtype: torch.dtype, device: str) -> torch.Tensor:
    """A NumPy or CuPy array as a tensor of this type and device; it shares the array's memory where both fit."""
    if device == "cpu" and on_device(value):  # by its own library, since torch may be built for the CPU alone
        value = to_host(value)
    words = value.view(np.int16) if value.dtype.kind == "V" else value
    with warnings.catch_warnings():  # the arrays may be read-only, and nothing here writes to a parameter
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_dlpack(words) if on_device(words) else torch.from_numpy(np.asarray(words))
    tensor = tensor.view(torch.bfloat16) if words is not value else tensor
    return tensor.to(device, dtype)


def to_array(tensor: torch.Tensor, backend: Backend) -> Array:
    """A dense array over the tensor's memory: CuPy's where the judge's device holds it, else NumPy's."""
    tensor = tensor.detach().contiguous()
    words = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    if tensor.is_cuda and has_device(backend) and tensor.get_device() == device_index(backend):
        with backend.scope():
            array = backend.xp.asarray(words)  # no copy; it keeps the tensor, and so the memory, alive
    else:
        array = words.cpu().numpy()
    return array if words is tensor else array.view(ml_dtypes.bfloat16)


@contextmanager
def without_tf32() -> Iterator[None]:
    """float32 products and convolutions on CUDA in float32, inside the block.

    torch's default for convolutions is TF32, with 10 bits of a float32's 23: the patch embedding would be 1e-3 off.
    torch 2.9 gave these switches new names, and warns about the old ones.
    """
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        switches = [(torch.backends.cuda.matmul, "fp32_precision"), (torch.backends.cudnn.conv, "fp32_precision")]
    else:
        switches = [(torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")]
    before = [getattr(*switch) for switch in switches]
    try:
        for switch in switches:
            setattr(*switch, "ieee" if switch[1] == "fp32_precision" else False)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, value)
