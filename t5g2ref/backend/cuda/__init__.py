"""The CUDA backend: CuPy arrays on one device, cuBLAS products, and kernels of our own where CuPy needs many.

    checks.py     what must be there, and an error in plain words for each thing that is not
    device.py     the backend: device, stream, memory pool
    loading.py    weights from a file to the device, through two pinned buffers
    blas.py       matrix products
    fused.py      twins of the array definitions, with kernels.cu
    flash.py      attention in blocks with online softmax, with flash.cu
    fast.py       twins that `cupy-fast` has beside fused.py's: that attention, and passes with fast.cu
    graphs.py     its calls recorded as CUDA graphs
    decoding/     its decoder for single positions, as one kernel

`t5g2ref.backend.find("cupy")` calls `backend` and "cupy-fast" `fast_backend`; CuPy is imported only then, and nothing
else imports this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t5g2ref.backend.cuda import checks

if TYPE_CHECKING:
    from t5g2ref.backend.cuda.device import CudaBackend

__all__ = ["backend", "fast_backend"]


def backend(index: int = 0, *, memory_limit: int | None = None, stream: Any = None) -> CudaBackend:
    """The backend of one device, with a memory pool of its own.

    Args:
        index: of the device, from 0, as CUDA_VISIBLE_DEVICES numbers them.
        memory_limit: bytes that the pool may hold at most; all of the device when None.
        stream: a cupy.cuda.Stream of that device, for everything that runs here. The default stream when None, in
            whose order torch in the same process works too.

    Raises:
        BackendError: no CuPy, no driver, no such device or none that answers; each with what to do.
    """
    checks.usable(index, memory_limit, stream)
    from t5g2ref.backend.cuda.device import CudaBackend

    return CudaBackend(index, memory_limit=memory_limit, stream=stream)


def fast_backend(index: int = 0, *, memory_limit: int | None = None, stream: Any = None) -> CudaBackend:
    """`backend` under the name "cupy-fast", with the twins of fast.py, decoding as one kernel and calls as graphs.

    They round where `numerics.FAST` says: another legal implementation and no definition. The decoder's weights are
    held twice. Arguments and errors are those of `backend`.
    """
    plain = backend(index, memory_limit=memory_limit, stream=stream)
    from t5g2ref.backend.cuda.decoding.launch import card, launch
    from t5g2ref.backend.cuda.decoding.stepping import Stepper
    from t5g2ref.backend.cuda.fast import FAST
    from t5g2ref.backend.cuda.graphs import Recorder

    # Weights in the decoding kernel's order, and graphs, belong to this backend and to those that are made of it.
    found = plain.with_twins({**FAST, **Stepper(launch, lambda: card(index)).twins(), **Recorder().twins()})
    found.name = plain.name.replace("cupy", "cupy-fast", 1)
    return found
