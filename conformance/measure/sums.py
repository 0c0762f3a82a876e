"""Sums over the elements of each token of a tap, in float64: all that the half-precision lane needs of it.

An error is measured twice. Once as a norm beside the truth's. Once element by element in units of the worst-case bound
(`oracle/worst_case.py`), where rounding noise is about alike everywhere and a defect's pattern stands out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from conformance.measure import sums_at_once
from conformance.measure.distance import rows_of
from t5g2ref.backend import Backend

Array = Any
Host = np.ndarray[Any, Any]
PIECE = 1 << 16  # elements looked at together on the host: they stay in the cache
DEVICE_PIECE = 1 << 25
SCALARS = ("features", "bounded")


@dataclass(frozen=True)
class Moments:
    """Sums by token, on the host. Rows of `gram` and the like: the peer, then the controls, then the patterns.

    Args:
        norm: (tokens,) ‖truth‖.
        errors: (1 + controls, tokens) ‖peer − truth‖, then each control's.
        top: (1 + controls, tokens) largest |error| / bound.
        gain, shift: (1 + controls, tokens) sums of (error / bound), times the truth's sign and as it is.
        square: (1 + controls, tokens) sums of (error / bound)².
        gram: (rows, rows, parts, tokens) sums of products of (error or pattern) / bound over a part of a token, such as
            a head; (0, 0, parts, tokens) where no pattern is.
        features: numbers of one token.
        bounded: whether there was a bound; without one `top` and what follows it are 0 and say nothing.
    """

    norm: Host
    errors: Host
    top: Host
    gain: Host
    shift: Host
    square: Host
    gram: Host
    features: int
    bounded: bool = True

    def of(self, keep: Host) -> Moments:
        """Only the tokens where keep (tokens,) is True."""
        if keep.all():
            return self
        sums = [f.name for f in fields(self) if f.name not in SCALARS]
        kept: dict[str, Any] = {name: getattr(self, name)[..., keep] for name in sums}
        return replace(self, **kept)


def moments(
    backend: Backend,
    axes: tuple[int, ...],
    truth: Array,
    peer: Array,
    controls: Sequence[Array],
    bound: Array | None,
    patterns: Sequence[Array],
    smallest: float,
    parts: int = 1,
) -> Moments:
    """The sums of one tap; all arrays have one shape, whose `axes` count tokens.

    Args:
        bound: of every element's error; None where there is none: `top` is then 0, and error / bound is 0.
        patterns: what oracles with a defect have here.
        smallest: below it the type's grid is no longer relative: added to the bound.
        parts: equal pieces of a token whose errors are independent of each other's: an attention's heads.
    """
    rows = [rows_of(a, axes) for a in (truth, peer, *controls, *patterns)]
    limits = None if bound is None else rows_of(bound, axes)
    split = parts if patterns else 0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is looked for afterwards
        flat = backend.host(_flat(backend.xp, rows, limits, 1 + len(controls), split, smallest))
    found = _named(flat, 1 + len(controls), len(patterns), parts, rows[0].shape[1])
    return replace(found, bounded=bound is not None)


def _flat(xp: Any, rows: list[Array], limits: Array | None, errors: int, parts: int, smallest: float) -> Array:
    """(columns, tokens), in pieces or by the kernels for it."""
    if sums_at_once.takes(xp, rows, limits, errors, parts):
        return sums_at_once.sums(xp, rows, limits, errors, parts, smallest)
    piece = PIECE if xp is np else DEVICE_PIECE
    step = max(1, piece // (max(1, rows[0].shape[1]) * len(rows)))
    pieces = []
    for t in range(0, len(rows[0]), step):
        limit = None if limits is None else limits[t : t + step]
        pieces.append(_sums(xp, [row[t : t + step] for row in rows], limit, errors, parts, smallest))
    return pieces[0] if len(pieces) == 1 else xp.concatenate(pieces, axis=1)


def _sums(xp: Any, rows: list[Array], limit: Array | None, errors: int, parts: int, smallest: float) -> Array:
    """(columns, tokens): what `_named` takes apart again. Few calls on stacked arrays: taps are many and small."""
    truth = rows[0].astype(np.float64)
    apart = xp.stack([_wide(row) - truth for row in rows[1:]])
    scaled = xp.zeros_like(apart) if limit is None else apart * (1.0 / (xp.abs(limit) + smallest))
    own = scaled[:errors]
    found = [
        xp.sqrt((truth * truth).sum(axis=1))[None],
        xp.sqrt((apart[:errors] ** 2).sum(axis=2)),
        xp.abs(own).max(axis=2),
        (own * xp.sign(truth)).sum(axis=2),
        own.sum(axis=2),
        (own * own).sum(axis=2),
    ]
    if parts:
        by_part = scaled.reshape(len(scaled), len(truth), parts, -1).transpose(1, 2, 0, 3)  # (tokens, parts, rows, …)
        products = xp.matmul(by_part, by_part.swapaxes(-1, -2))
        found.append(products.transpose(2, 3, 1, 0).reshape(-1, len(truth)))
    return xp.concatenate(found)


def _wide(row: Array) -> Array:
    """In float64; a device's half types by way of float32, which holds them."""
    return (row.astype(np.float32) if row.dtype.itemsize < 4 else row).astype(np.float64)


def _named(flat: Host, errors: int, patterns: int, parts: int, features: int) -> Moments:
    norm, rest = flat[0], flat[1:]
    names = ("errors", "top", "gain", "shift", "square")
    blocks: dict[str, Any] = {name: rest[i * errors : (i + 1) * errors] for i, name in enumerate(names)}
    rows = errors + patterns if patterns else 0
    gram = rest[len(names) * errors :].reshape(rows, rows, parts, flat.shape[1])
    return Moments(norm=norm, gram=gram, features=features, **blocks)
