"""Measures how far arrays are apart, token by token, where they lie. All large arithmetic of a comparison is here.

NumPy takes pieces that stay in the cache. On a device one fused reduction reads two arrays and writes a number a token:
one launch a pair, no array in between, and a single transfer for all of them.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from t5g2ref.backend import NUMPY, Backend

Array = Any
CHUNK = 1 << 16  # elements looked at together: they stay in the cache, while the tap may be a gigabyte


class Distances:
    """NumPy's.

    Args:
        backend: whose arrays are compared.
    """

    def __init__(self, backend: Backend = NUMPY) -> None:
        self.backend = backend

    def errors(self, axes: tuple[int, ...], truth: Array, peer: Array, controls: list[Array]) -> np.ndarray[Any, Any]:
        """(3, tokens) float64 on the host: ‖truth‖, ‖peer − truth‖ and the largest ‖control − truth‖, in float64.

        Shapes: all arrays have one shape; `axes` count its tokens, in the order of the result. A NaN or an infinity
        anywhere in the peer's array makes its token's error one too.
        """
        rows = [rows_of(array, axes) for array in (truth, peer, *controls)]
        step = max(1, CHUNK // max(1, rows[0].shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for afterwards
            return np.concatenate(
                [_errors([r[t : t + step] for r in rows]) for t in range(0, len(rows[0]), step)], axis=1
            )

    def differing(self, axes: tuple[int, ...], peer: Array, truth: Array) -> np.ndarray[Any, Any]:
        """(tokens,) on the host: how many elements of each token differ."""
        features = tuple(axis for axis in range(truth.ndim) if axis not in axes)
        return self.backend.host((peer != truth).sum(axis=features)).reshape(-1)


class Fused(Distances):
    """A device's, by CuPy's `ReductionKernel`."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._distance = backend.xp.ReductionKernel(
            "X x, Y y",
            "float64 z",
            "(double(x) - double(y)) * (double(x) - double(y))",
            "a + b",
            "z = sqrt(a)",
            "0",
            "token_distance",
        )
        with backend.scope():
            self._zero = backend.xp.zeros((), dtype=np.float64)

    def errors(self, axes: tuple[int, ...], truth: Array, peer: Array, controls: list[Array]) -> np.ndarray[Any, Any]:
        if not axes:  # a scalar is one token of one number
            truth, peer, *controls = (array.reshape(1, 1) for array in (truth, peer, *controls))
            axes = (0,)
        features = tuple(axis for axis in range(truth.ndim) if axis not in axes)
        pairs = [(truth, self._zero), *((_single(array), truth) for array in (peer, *controls))]
        norms = self.backend.xp.empty((len(pairs), *(truth.shape[axis] for axis in axes)), dtype=np.float64)
        for i, pair in enumerate(pairs):
            self._distance(*pair, norms[i], axis=features)
        norm, error, *control = self.backend.host(norms).reshape(len(pairs), -1)
        return np.stack([norm, error, np.max(control, axis=0)])


def distances(backend: Backend) -> Distances:
    """What the backend's arrays are compared with."""
    return Fused(backend) if hasattr(backend.xp, "ReductionKernel") else Distances(backend)


def _single(array: Array) -> Array:
    """Half types as float32, which holds them all: the kernel is then compiled for plain C types alone."""
    return array if array.dtype.itemsize > 2 else array.astype(np.float32)


def rows_of(array: Array, axes: tuple[int, ...]) -> Array:
    """(tokens, features), in the array's own dtype; no copy where the token axes come first."""
    order = (*axes, *(axis for axis in range(array.ndim) if axis not in axes))
    return array.transpose(order).reshape(prod(array.shape[axis] for axis in axes), -1)


def _errors(rows: list[Array]) -> np.ndarray[Any, Any]:
    truth, peer, *controls = rows
    control = np.max([_norms(_difference(c, truth)) for c in controls], axis=0)
    return np.stack([_norms(truth), _norms(_difference(peer, truth)), control])


def _difference(a: Array, b: Array) -> np.ndarray[Any, Any]:
    """a − b, in float64: half types would be subtracted in their own precision otherwise."""
    return np.asarray(a.astype(np.float64, copy=False) - b)


def _norms(rows: Array) -> np.ndarray[Any, Any]:
    return np.asarray(np.sqrt(np.einsum("tf,tf->t", rows, rows, dtype=np.float64)))
