"""Makes transformers as a peer, in the way and on the device that its name says."""

from __future__ import annotations

import torch

from conformance.arrays import device_index, has_device
from conformance.errors import PeerUnavailable
from conformance.peers.torch.transformers import TransformersPeer
from t5g2ref.backend import Backend
from t5g2ref.dtypes import DType


def create(
    attention: str, way: str | None, dtype: DType | None, device: str | None, backend: Backend
) -> TransformersPeer:
    """The peer. By default its device is the judge's if torch sees that, else the CPU.

    Raises PeerUnavailable for a device that torch does not see.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        index = device_index(backend) if has_device(backend) else there
        device = "cpu" if index >= there else f"cuda:{index}" if index else "cuda"
    if device != "cpu" and int(device.partition(":")[2] or 0) >= there:
        seen = f"sees {there} such device{'s' * (there != 1)}" if there else "sees no CUDA device"
        raise PeerUnavailable(
            f"transformers on {device}: torch {torch.__version__} {seen}; install a torch for CUDA if this one is for "
            "the CPU, see whether nvidia-smi lists the card, or say cpu in the peer's name"
        )
    dtype, device = dtype or "float32", device.removesuffix(":0")
    if way == "-compile":
        from conformance.peers.torch.compiled import CompiledPeer  # its compiler takes as long to load as torch does

        return CompiledPeer(attention, dtype, device)
    return TransformersPeer(attention, dtype, device, static=way == "-static")
