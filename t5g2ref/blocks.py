"""Operations in blocks: of tokens, several side by side; of numbers, so small that they stay in the cache.

Norms, linear layers and activations know nothing of a token's neighbours; attention alone does. So half of a layer,
from its norm to its residual, may run on a block of tokens from end to end, and no array of it is ever whole. What runs
is the definition itself. Whoever watches it at a tap has to be shown whole arrays and gets them, but one that takes
parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, TypeVar

from t5g2ref.numerics import Array, Numerics
from t5g2ref.trace import OFF

P = ParamSpec("P")
R = TypeVar("R")
MOST = 256  # tokens of a block beside others: its arrays stay in the cache, its products are as fast as any
ALONE = 2048  # of one that has the BLAS's own threads: what it holds is bounded, and the BLAS does not notice
LEAST = 64  # with fewer for each thread, those of the BLAS are the better ones
STEP = 32  # a block begins at a multiple of it, where the BLAS's own blocks do
SMALL = 1 << 16  # numbers; with fewer a thread is not worth waking
CACHED = 1 << 16  # numbers of a piece of an array that goes through many passes, and of its temporary ones


def rowwise(
    *names: str, axis: int = 1
) -> Callable[[Callable[Concatenate[Numerics, P], R]], Callable[Concatenate[Numerics, P], R]]:
    """Marks such an operation. Its parameters of these names are arrays (B, T, …), or tuples of them, and are given by
    place; `axis` is that of the tokens in its result, which is an array or a tuple of arrays. `trace` is its tap."""

    def mark(definition: Callable[Concatenate[Numerics, P], R]) -> Callable[Concatenate[Numerics, P], R]:
        order = list(signature(definition).parameters)[1:]
        places = [order.index(name) for name in names]
        watched = order.index("trace") if "trace" in order else len(order)

        @wraps(definition)
        def call(nx: Numerics, /, *args: P.args, **kwargs: P.kwargs) -> R:
            trace: Any = args[watched] if len(args) > watched else kwargs.get("trace", OFF)
            cuts = [] if trace.active and not trace.parts else blocks(nx, args[places[0]], watched=trace.active)
            if len(cuts) < 2:
                return definition(nx, *args, **kwargs)
            if trace.active:  # it takes parts, in their order
                shown: R = _shown(nx, definition, args, places, watched, cuts, axis)
                return shown
            jobs = [partial(definition, nx, *_cut(args, places, rows), **kwargs) for rows in cuts]
            whole: R = _joined(nx, nx.each(jobs), axis)
            return whole

        return call

    return mark


def _shown(
    nx: Numerics, definition: Any, args: Sequence[Any], places: Sequence[int], at: int, cuts: list[slice], axis: int
) -> Any:
    """The blocks one after the other, each under the trace of its part; the trace is given by place, too."""
    parts = []
    for rows in cuts:
        given = _cut(args, places, rows)
        given[at] = given[at].part(rows.start)
        parts.append(definition(nx, *given))
    return _joined(nx, parts, axis)


def blocks(nx: Numerics, x: Any, *, watched: bool = False) -> list[slice]:
    """Blocks of the tokens of x (B, T, …), of one size but for STEP; none where they would not pay.

    Args:
        watched: whether somebody is shown each block, which then go one after the other.
    """
    if x.size < SMALL or not nx.blockwise:
        return []
    threads, length = nx.threads, x.shape[1]
    threads, most = (threads, MOST) if 1 < threads <= length // LEAST and not watched else (1, ALONE)
    count = threads * -(-length // (threads * most))
    cuts = [length * i // count // STEP * STEP for i in range(count)]
    return [slice(first, last) for first, last in zip(cuts, [*cuts[1:], length], strict=True)]


def _cut(args: Sequence[Any], places: Sequence[int], rows: slice) -> list[Any]:
    given = list(args)
    for place in places:
        value = given[place]
        given[place] = tuple(x[:, rows] for x in value) if isinstance(value, tuple) else value[:, rows]
    return given


def _joined(nx: Numerics, parts: list[Any], axis: int) -> Any:
    if isinstance(parts[0], tuple):
        return tuple(nx.join(list(pieces), axis) for pieces in zip(*parts, strict=True))
    return nx.join(parts, axis)


def elementwise(definition: Callable[Concatenate[Numerics, P], Array]) -> Callable[Concatenate[Numerics, P], Array]:
    """Marks an operation of each number by itself: arrays of one shape, which may go through its passes in pieces that
    stay in the cache. The same bits in every type."""

    cut: Callable[..., Array] = definition  # whose arguments are others than those of the call

    @wraps(definition)
    def call(nx: Numerics, /, *args: P.args, **kwargs: P.kwargs) -> Array:
        arrays: list[Any] = [arg for arg in args if hasattr(arg, "shape")]
        watched = any(getattr(arg, "active", False) for arg in (*args, *kwargs.values()))
        if watched or not nx.in_cache or arrays[0].size <= CACHED or not all(x.flags.c_contiguous for x in arrays):
            return definition(nx, *args, **kwargs)
        out = nx.xp.empty(arrays[0].shape, nx.storage)
        flat, others, into = [x.reshape(-1) for x in arrays], args[len(arrays) :], out.reshape(-1)
        for start in range(0, into.size, CACHED):
            piece = slice(start, start + CACHED)
            into[piece] = cut(nx, *(x[piece] for x in flat), *others, **kwargs)
        return out

    return call
