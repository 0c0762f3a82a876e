"""The sums of a tap by two kernels of a device, `sums.cu`: array operations would be some seventy launches a tap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from conformance.arrays import has_kernels, kernels
from t5g2ref.dtypes import HALF

Array = Any
ROWS, ERRORS = 16, 8  # how many arrays sums.cu has parameters for, and how many warps for errors of their own
TYPES = {np.dtype(np.float64): 0, np.dtype(np.float32): 1, np.dtype(HALF["bfloat16"]): 2, np.dtype(HALF["float16"]): 3}
THREADS, PIECE = 256, 8192  # of a block, and the elements of a token that one takes
MOST_UNITS = 65_535  # of a grid's second axis
CONSTANTS = f"const int ROWS = {ROWS}, ERRORS = {ERRORS}, THREADS = {THREADS};\n"  # of sums.cu


def takes(xp: Any, rows: Sequence[Array], limit: Array | None, errors: int, parts: int) -> bool:
    """Whether the kernels are for these: a device's arrays, of types and in numbers that they know."""
    arrays = [*rows, *([] if limit is None else [limit])]
    known = all(array.dtype in TYPES for array in arrays)
    units = max(1, parts) * _pieces(rows[0].shape[1] // max(1, parts))
    return (
        has_kernels(xp)
        and known
        and len(rows) <= ROWS
        and errors <= ERRORS
        and bool(rows[0].size)
        and units <= MOST_UNITS
    )


def sums(xp: Any, rows: Sequence[Array], limit: Array | None, errors: int, parts: int, smallest: float) -> Array:
    """(columns, tokens) of all tokens at once: what `sums._sums` gives, with the same arguments."""
    tokens, features = rows[0].shape
    of_part = features // max(1, parts)
    pieces, others = _pieces(of_part), len(rows) - 1
    pairs = others * (others + 1) // 2 if parts else 0
    dense = [xp.ascontiguousarray(row) for row in rows]
    bound = 0 if limit is None else xp.ascontiguousarray(limit)
    types = sum(TYPES[row.dtype] << 2 * i for i, row in enumerate(rows))
    types |= 0 if limit is None else TYPES[limit.dtype] << 2 * ROWS
    units, device = max(1, parts) * pieces, int(xp.cuda.runtime.getDevice())
    of = kernels(xp, device, __package__, "sums.cu", CONSTANTS)
    partial = xp.empty((units, 1 + 5 * errors + pairs, tokens))
    shape = (np.int32(len(rows)), np.int32(errors), np.int32(pairs), np.int64(tokens))
    length = -(-of_part // pieces)
    of.get_function("token_sums")(
        (tokens, units),
        (THREADS,),
        (
            *dense,
            *[0] * (ROWS - len(rows)),
            bound,
            np.int64(types),
            *shape,
            np.int64(features),
            np.int64(of_part),
            np.int32(pieces),
            np.int64(length),
            float(smallest),
            partial,
        ),
    )
    out = xp.empty((1 + 5 * errors + others * others * parts, tokens))
    of.get_function("token_totals")(
        (-(-out.size // THREADS),),
        (THREADS,),
        (partial, *shape, np.int32(max(1, parts)), np.int32(pieces), np.int64(out.size), out),
    )
    return out


def _pieces(features: int) -> int:
    return max(1, -(-features // PIECE))
