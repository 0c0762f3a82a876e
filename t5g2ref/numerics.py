"""The one object that knows the array library, the number type and where the model rounds.

The model is written once, over `Numerics`. Four number types:

* float64: the oracle. Nothing is rounded on purpose.
* float32: what a peer in float32 computes; its RoPE angles are float32 too.
* bfloat16, float16: on NumPy *emulated*: arrays are float32, and `cast` rounds them to the type's grid at the
  points where the model rounds. On CuPy the same calls are conversions between native types.

`wide` and `cast` are the model's islands: `wide(x)` enters one (float32 or better), `cast` leaves it with a single
rounding. In float64 and float32 both are free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np

from t5g2ref.backend import NUMPY, Backend
from t5g2ref.dtypes import DTYPES, HALF, DType, to_grid, unit_roundoff

Array = Any
P = ParamSpec("P")
T = TypeVar("T")
FEWEST = 32  # queries of a block that another thread might take

AT_ONCE = 1 << 26  # numbers of a weight that are widened at a time; the table of the released models has more
TILE = 4096  # rows of a weight that a part is a multiple of; on a CPU as many, which stay in its cache


@dataclass(frozen=True)
class Profile:
    """Where a legal implementation rounds, beyond the places that every one shares.

    Args:
        name: printed in reports.
        rope_angle: "float32" forms inverse frequencies and angles in float32, as transformers does; "exact" in
            float64. Far positions feel it: half an ulp of an angle near 1e4 is 5e-4 radians.
        round_scores: the attention scores are rounded to the model's type before and after the scale (an unfused
            softmax, transformers' eager path); a fused one keeps them wide. No difference in float32 and float64.
        running: sums are running sums, those of products (`Backend.running`) and those of norms, softmax and losses, as
            plain loops make them. Otherwise the array library has the order; it keeps some dozens of partial sums, and
            so a smaller error. Both are legal.
        flash_keys: keys of one step of a flash kernel; 0 for none. It rounds the exponentials, relative to the largest
            score so far, and divides by their unrounded sum behind the value product (Dao et al., 2022). No difference
            in float32 and float64.
        round_products: a product is rounded before its bias is added, as where a GPU library adds it in a pass of its
            own. No difference in float32 and float64.
        across_ties: with `round_scores`, a score that float32's sums leave within their own error of the middle of two
            numbers is rounded to the one that is a little farther. Another order of summation may give that. No
            difference in float32 and float64.
    """

    name: str
    rope_angle: Literal["exact", "float32"] = "float32"
    round_scores: bool = False
    running: bool = False
    flash_keys: int = 0
    round_products: bool = False
    across_ties: bool = False


EXACT = Profile("exact", rope_angle="exact")
EAGER = Profile("eager", round_scores=True)
SDPA = Profile("sdpa")
RUNNING = Profile("running", running=True)
FLASH = Profile("flash", flash_keys=512, round_products=True)
FAST = Profile("fast", flash_keys=64, round_products=True)  # of `cupy-fast`, whose kernels take 64 or 128 keys a step
TIES = Profile("ties", round_scores=True, across_ties=True)


@dataclass(frozen=True)
class Numerics:
    """Backend, number type and rounding profile; see the module's page.

    Args:
        dtype: the type the model runs in.
        profile: the rounding points.
        backend: the array library and its device; `backend.find("cupy")` makes the GPU's.
        embed_dtype: the type of the running model's embedding table, which is the type that √hidden is rounded to
            (a bfloat16 checkpoint that is loaded as float32 scales by the float32 root). Defaults to `dtype`; the
            float64 truth of a float32 peer sets it to float32.
    """

    dtype: DType = "float64"
    profile: Profile = EXACT
    backend: Backend = NUMPY
    embed_dtype: DType | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not implemented; choose one of {', '.join(DTYPES)}")

    @property
    def xp(self) -> Any:
        """The array namespace."""
        return self.backend.xp

    def block(self, length: int, scores: int) -> int:
        """How many queries of so many attention takes at a time, when each has so many scores in all rows and heads. No
        thread is without a block, where there are queries enough."""
        most = max(1, min(self.backend.block_rows, self.backend.block_scores // max(1, scores)))
        return most if length < 2 * FEWEST else min(most, max(FEWEST, -(-length // self.threads)))

    @property
    def threads(self) -> int:
        """How many threads `each` would have now."""
        return self.backend.threads if self.blockwise else 1

    @property
    def in_cache(self) -> bool:
        """Whether an array should go through several passes in pieces: on a CPU, whose caches are small."""
        return self.xp is np

    @property
    def blockwise(self) -> bool:
        """Whether rows may go in blocks, several side by side. In float32 alone, and not where the profile has an order
        of sums: the oracle and the emulated types keep every bit, whatever a BLAS does in the last rows of a block."""
        return self.dtype == "float32" and not self.profile.running

    def each(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """The jobs' results, in their order; side by side where there are `threads`."""
        return self.backend.each(jobs) if self.blockwise else [job() for job in jobs]

    def scope(self) -> AbstractContextManager[object]:
        """The backend's device, stream and memory pool, for as long as the block lasts."""
        return self.backend.scope()

    @cached_property
    def emulated(self) -> bool:
        """Half types without native arrays: float32 arrays on the half type's grid."""
        return self.dtype in HALF and not self.backend.native_half

    @cached_property
    def storage(self) -> np.dtype[Any]:
        """The dtype that activations have in memory."""
        if self.dtype in HALF and not self.emulated:
            half: np.dtype[Any] = np.dtype(HALF[self.dtype])
            return half
        return self.wide_dtype

    @cached_property
    def wide_dtype(self) -> np.dtype[Any]:
        """The dtype inside norms, softmax and activation functions: float32, or float64 for the oracle."""
        return np.dtype("float64" if self.dtype == "float64" else "float32")

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next number: the largest relative error of one rounding."""
        return unit_roundoff(self.dtype)

    def array(self, value: Any) -> Array:
        """`value` as an activation or a weight of this model, rounded to its grid; no copy if it has that type."""
        value = self.xp.asarray(value)
        if self.emulated:
            return to_grid(value, self.dtype) if value.dtype != HALF[self.dtype] else value.astype(np.float32)
        return value.astype(self.storage, copy=False)

    def weight(self, value: Array) -> Array:
        """A weight at its point of use. Weights may be kept narrower than the model runs (float32 under the
        float64 oracle: exact, half the memory); they are widened here, one layer at a time."""
        return value if self._is_kept(value) else self.array(value)

    def _is_kept(self, value: Array) -> bool:
        """Whether a weight is used as it lies in memory."""
        return bool(value.dtype == self.storage) and not self.emulated

    def wide(self, x: Array) -> Array:
        """Enter an island: float32 (float64 for the oracle)."""
        return x.astype(self.wide_dtype, copy=False)

    def cast(self, x: Array) -> Array:
        """Leave an island: one rounding to the model's type."""
        if self.emulated:
            return to_grid(x, self.dtype)
        return x.astype(self.storage, copy=False)

    def add(self, a: Array, b: Array) -> Array:
        """a + b, rounded once."""
        return self.cast(a + b)

    def mul(self, a: Array, b: Array) -> Array:
        """a · b, rounded once."""
        return self.cast(a * b)

    def matmul(self, a: Array, b: Array) -> Array:
        """a @ b accumulated wide, rounded once. Both operands are of this model's storage type."""
        return self.cast(self._sums(a, b, self.storage))

    def product(self, a: Array, b: Array) -> Array:
        """a @ b accumulated and kept wide."""
        return self._sums(a, b, self.wide_dtype)

    def across(self, x: Array, error: Array) -> Array:
        """x, wide, rounded once. Where an error of that size decides between two numbers, it is the farther one. In
        float32 and float64 it is x."""
        if self.dtype not in HALF:
            return x
        near, low, high = (self.wide(self.cast(y)) for y in (x, x - error, x + error))
        return self.cast(self.xp.where(low == near, high, low))

    def _sums(self, a: Array, b: Array, dtype: np.dtype[Any]) -> Array:
        """a (…, M, K) @ b (…, K, N), summed wide in the profile's order; in `dtype` or still wide."""
        if self.profile.running and a.shape[-1] > 1:
            return self.backend.running(self.wide(a), self.wide(b))
        return self.backend.product(a, b, dtype)

    def total(self, x: Array) -> Array:
        """The sum over the last axis, which is kept: (…, D) → (…, 1), in the profile's order; x is wide."""
        return self.xp.cumsum(x, axis=-1)[..., -1:] if self.profile.running else x.sum(axis=-1, keepdims=True)

    def mean(self, x: Array) -> Array:
        """The mean over the last axis, which is kept: (…, D) → (…, 1), in the profile's order; x is wide."""
        return self.total(x) / x.shape[-1]

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """x (…, in) @ weightᵀ (out, in) + bias (out,), rounded once, as a linear layer with a fused bias."""
        rows = x.reshape(-1, x.shape[-1])  # one large product instead of one per batch row
        y = self.columns(rows, weight, bias) if self._is_kept(weight) else self._widened(rows, weight, bias)
        return y.reshape(*x.shape[:-1], weight.shape[0])

    def _widened(self, rows: Array, weight: Array, bias: Array | None) -> Array:
        """`columns` of a weight that is kept narrower, in parts, so that no large one is ever wide as a whole."""
        size = TILE if self.in_cache else max(TILE, AT_ONCE // weight.shape[1] // TILE * TILE)
        parts = [slice(first, first + size) for first in range(0, weight.shape[0], size)]
        ys = [self.columns(rows, weight[part], None if bias is None else bias[part]) for part in parts]
        return ys[0] if len(ys) == 1 else self.join(ys, 1)

    def columns(self, rows: Array, weight: Array, bias: Array | None) -> Array:
        """Of `linear`, the columns of the result that these rows of the weight make: (R, in) → (R, out)."""
        columns = self.weight(weight).T
        return self.matmul(rows, columns) if bias is None else affine(self, rows, columns, bias)

    def join(self, arrays: list[Array], axis: int) -> Array:
        """The arrays one behind the other along `axis`."""
        return self.backend.join(arrays, axis)


def twinned(
    definition: Callable[Concatenate[Numerics, P], T],
) -> Callable[Concatenate[Numerics, P], T]:
    """An operation that the backend may have a faster twin of, under the same name. The definition says what is meant;
    the tests hold every twin against it. A twin gets the definition too, for calls that it leaves to it."""

    @wraps(definition)
    def call(nx: Numerics, /, *args: P.args, **kwargs: P.kwargs) -> T:
        twin = nx.backend.twins.get(definition.__name__)
        return definition(nx, *args, **kwargs) if twin is None else twin(definition, nx, *args, **kwargs)

    return call


@twinned
def biased(nx: Numerics, y: Array, bias: Array) -> Array:
    """y (…, out), wide, + bias (out,), rounded once; twice where the profile rounds products."""
    y = nx.wide(nx.cast(y)) if nx.profile.round_products else y
    return nx.cast(y + nx.wide(nx.weight(bias)))


@twinned
def affine(nx: Numerics, rows: Array, columns: Array, bias: Array) -> Array:
    """rows (R, in) @ columns (in, out) + bias (out,), rounded as `biased` says."""
    return biased(nx, nx.product(rows, columns), bias)
