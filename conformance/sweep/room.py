"""How much memory a comparison takes, streamed or on a device, by arithmetic alone: weights, and what lies beside them.

A text case is little beside the weights. A picture of 4096 patches is not: eleven runs meet at a tap of 18 million
numbers, a peer's taps fill what a dump may hold in memory, and sums of every patch are kept until the case is judged.
"""

from __future__ import annotations

from math import prod

from conformance.activations import MEMORY_BYTES
from conformance.cases.case import Case
from conformance.cases.plan import parts_of, plan_of, shape_of, sizes
from conformance.checkpoints import BESIDE, GIB, SINGLE, bytes_of_layers, numbers_in_no_layer
from conformance.judge.patterns import MEMBERS, shown_at
from conformance.oracle.run_case import legal
from conformance.target import Target
from t5g2ref.config import Config
from t5g2ref.dtypes import HALF, DType
from t5g2ref.params import Shape
from t5g2ref.taps import Tap

Taps = list[tuple[Tap, Shape]]

LIBRARIES = GIB  # bytes of a process that imported them all, at most
DOUBLE, NARROW = 8, 2  # bytes of a number in float64, and in a half type
TABLE = "encoder.text_model.embed_tokens.weight"
SUMS = 5  # of a token, by `measure.sums.Moments`, for the peer and for each control


def bytes_for(target: Target, case: Case | None, dtype: DType) -> int:
    """The most that a comparison of a peer in `dtype` holds; None for the exact lane. The table is read for it."""
    table, outside = target.weights[TABLE], numbers_in_no_layer(target.config)
    kept = int(table.dtype.itemsize)
    own = 0 if str(table.dtype) == dtype else SINGLE + NARROW * (dtype in HALF)  # ours rounded, and a peer's
    held = outside * (kept + own) + bytes_of_layers(target.config) + BESIDE
    return held + (0 if case is None else bytes_beside(target.config, case, dtype))


def bytes_on_device(target: Target, case: Case | None, dtype: DType) -> int:
    """What a comparison takes of a device beside the weights: the peer's values; what meets at a tap, and as much again
    in sums."""
    taps = [] if case is None else _taps(target.config, case)
    return _shown(taps, dtype) + 2 * _meeting(taps, dtype)


def bytes_beside(config: Config, case: Case, dtype: DType) -> int:
    """What a case's values take: those that meet at the largest tap, the peer's, and the sums that are kept."""
    controls, taps = len(legal(dtype)), _taps(config, case)
    sums = sum(_sums(config, tap, shape, controls) for tap, shape in taps) if dtype in HALF else 0
    return _meeting(taps, dtype) + min(MEMORY_BYTES, _shown(taps, dtype)) + sums


def _taps(config: Config, case: Case) -> Taps:
    return [(tap, shape_of(tap, sizes(config, case, call, tap))) for call, tap in plan_of(config, case)]


def _meeting(taps: Taps, dtype: DType) -> int:
    """Bytes of what all runs have at the largest tap."""
    controls, doubles = len(legal(dtype)), 2 + (len(MEMBERS) if dtype in HALF else 0)
    return (DOUBLE * doubles + SINGLE * controls) * max((prod(shape) for _, shape in taps), default=0)


def _shown(taps: Taps, dtype: DType) -> int:
    """Bytes of all that a peer shows."""
    return (NARROW if dtype in HALF else SINGLE) * sum(prod(shape) for _, shape in taps)


def _sums(config: Config, tap: Tap, shape: tuple[int, ...], controls: int) -> int:
    """Bytes of a tap's `Moments`."""
    if tap.exact:
        return 0
    tokens = prod(shape[axis] for axis in tap.token_axes)
    patterns = sum(defect is not None for defect in shown_at(tap.name))
    products = (1 + controls + patterns) ** 2 * parts_of(config, tap, prod(shape) // tokens) if patterns else 0
    return DOUBLE * tokens * (1 + SUMS * (1 + controls) + products)
