"""A third array library, for the tests: NumPy's numbers behind CuPy's rules, and a record of every wait.

On a GPU two mistakes stay invisible until somebody measures or crashes: a host array among device arrays, and a place
where the host waits for the device because Python wants to know a number. Here both show on any machine. What is let
through is listed by name; `test_strict_arrays` holds the lists against the real CuPy. Stricter than CuPy on purpose:

* a NumPy array is refused everywhere but in `asarray`; CuPy uploads one as an index or as the value of an assignment,
  and compares with one of no axes;
* NumPy's own functions refuse these arrays; CuPy answers `np.sqrt(x)` itself;
* what came from outside is read-only, so that code which writes into its arguments raises.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from t5g2ref.backend import Backend

FUNCTIONS: dict[str, tuple[str, ...]] = {  # name: the keyword arguments let through
    **dict.fromkeys(("abs", "cos", "exp", "isfinite", "log", "log1p", "maximum", "sin", "sqrt", "tanh"), ()),
    **dict.fromkeys(("expm1", "minimum", "sign"), ()),
    **dict.fromkeys(("arange", "asarray", "full", "ones", "zeros"), ("dtype",)),
    **dict.fromkeys(("asnumpy", "broadcast_to", "full_like", "matmul", "where"), ()),
    **dict.fromkeys(("concatenate", "cumsum", "partition", "stack"), ("axis",)),
    "argsort": ("axis", "kind"),
    "sum": ("axis", "dtype"),
    "take_along_axis": ("axis",),
    "zeros_like": (),
}
# How many of the arguments are arrays, where not all are.
ARRAYS = {
    **dict.fromkeys(("arange", "full", "ones", "zeros"), 0),
    **dict.fromkeys(("broadcast_to", "concatenate", "partition", "stack"), 1),
}
CONSTANTS = ("inf", "nan")
METHODS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("all", "any", "argmax", "max", "mean", "min"), ("axis", "keepdims")),
    **dict.fromkeys(("copy", "reshape", "swapaxes", "transpose", "view"), ()),
    "astype": ("copy",),
    "sum": ("axis", "dtype", "keepdims"),
}
ATTRIBUTES = ("T", "dtype", "ndim", "shape", "size")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
ARITHMETIC = ("add", "sub", "mul", "truediv", "pow", "and", "or")
UNARY = ("invert", "neg")
WAITING = {"__bool__": bool, "__int__": int, "__float__": float, "__str__": str}
COPYING = ("item", "tolist")
DTYPES = {np.dtype(kind) for kind in ("?", *"bhilqBHILQ", *"efdFD", ml_dtypes.bfloat16)}  # those that CuPy has


class Waited(RuntimeError):
    """The host wanted to know what the device had computed, where that is forbidden."""


class StrictArray:
    """A NumPy array that lets through what is listed above, never mixes with host arrays, and tells when it waits.

    It has no `__index__`, as CuPy's has none: a length or an index must not come from the device.
    """

    __slots__ = ("_array", "_library")
    __array_ufunc__ = None  # so that NumPy leaves `host + device` to `__radd__`, which refuses
    __hash__ = None

    def __init__(self, library: Strict, array: np.ndarray[Any, Any]) -> None:
        self._library, self._array = library, array

    def __getattr__(self, name: str) -> Any:
        if name in ATTRIBUTES:
            return self._library.wrapped(getattr(self._array, name))
        if name in METHODS:
            return partial(self._method, name)
        if name in COPYING:
            self._library.waits_for(name)
            return getattr(self._array, name)
        raise AttributeError(f"arrays have no {name!r} here: if cupy.ndarray has it, list it in strict_arrays.py")

    def _method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        check_keywords(name, kwargs, METHODS[name])
        return self._library.wrapped(getattr(self._array, name)(*map(plain, args), **kwargs))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion of a device array to NumPy: use Backend.host")

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        """Noted as a wait: CuPy makes an array of each element, and who walks over those mostly reads them."""
        self._library.waits_for("iteration")
        return map(self._library.wrapped, self._array)

    def __repr__(self) -> str:  # without its values, so that a failing test may print it
        return f"StrictArray({self._array.shape}, {self._array.dtype})"

    def __getitem__(self, key: Any) -> Any:
        return self._library.wrapped(self._array[self._index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._array[self._index(key)] = unwrapped(value)

    def _index(self, key: Any) -> Any:
        """The key for NumPy. A mask selects so many elements as it holds True, which the host must learn: a wait, in
        CuPy for an assignment too."""
        keys = [self._part(part) for part in (key if isinstance(key, tuple) else (key,))]
        if any(isinstance(part, np.ndarray) and part.dtype == bool for part in keys):
            self._library.waits_for("a mask as index")
        return tuple(keys)

    def _part(self, part: Any) -> Any:
        if isinstance(part, StrictArray):
            return part._array
        if part is None or part is Ellipsis or isinstance(part, slice | np.integer) or type(part) is int:
            return part
        raise TypeError(f"{type(part).__name__} as an index: a host array among device arrays")


class Strict:
    """The namespace: NumPy's functions under their names, those of `FUNCTIONS` alone.

    Attributes:
        waits: "module.function" of each wait, in order.
        patient: whether waiting is allowed.
    """

    inf, nan = np.inf, np.nan

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.patient = True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in FUNCTIONS:
            raise AttributeError(f"no function {name!r} here: if CuPy has it, list it in strict_arrays.py")
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        check_keywords(name, kwargs, FUNCTIONS[name])
        count = ARRAYS.get(name, len(args))
        if name in ("concatenate", "stack"):
            arrays: list[Any] = [[unwrapped(value) for value in args[0]]]
        else:
            arrays = [unwrapped(value) for value in args[:count]]
        return self.wrapped(getattr(np, name)(*arrays, *map(plain, args[count:]), **kwargs))

    def asarray(self, value: Any, dtype: Any = None) -> StrictArray:
        """A read-only copy on the "device"; an array that is there already stays what it is."""
        if isinstance(value, StrictArray):
            return value if dtype is None else value.astype(dtype, copy=False)
        array = np.array(value, dtype=dtype)
        if array.dtype not in DTYPES:
            raise ValueError(f"Unsupported dtype {array.dtype}")
        array.flags.writeable = False
        return StrictArray(self, array)

    def asnumpy(self, value: Any) -> np.ndarray[Any, Any]:
        """A copy on the host, and a wait."""
        if not isinstance(value, StrictArray):
            return np.asarray(value)
        self.waits_for("asnumpy")
        return value._array.copy()

    def wrapped(self, value: Any) -> Any:
        """Arrays and NumPy's scalars as arrays, for a reduction leaves its number on the device; the rest as it is."""
        return StrictArray(self, np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value

    def waits_for(self, what: str) -> None:
        """Note the place, or raise where nobody may wait."""
        place = caller()
        if not self.patient:
            raise Waited(f"{place} waits for the device: {what}")
        self.waits.append(place)

    @contextmanager
    def without_waits(self) -> Iterator[None]:
        """A wait in this block raises `Waited`."""
        self.patient = False
        try:
            yield
        finally:
            self.patient = True


class StrictBackend(Backend):
    """`Backend` over an own `Strict`; everything else is inherited, NumPy's emulation of the half types included."""

    name = "strict"

    def __init__(self) -> None:
        self.xp = Strict()

    def host(self, x: Any) -> np.ndarray[Any, Any]:
        """x as a NumPy array, and a wait."""
        return self.xp.asnumpy(x)


def unwrapped(value: Any) -> Any:
    """What NumPy computes with: a device array's values, or a scalar of those types that CuPy takes."""
    if isinstance(value, StrictArray):
        return value._array
    if type(value) in (bool, int, float) or isinstance(value, np.generic):
        return value
    raise TypeError(f"unsupported type {type(value).__name__} among device arrays: give it to asarray first")


def plain(value: Any) -> Any:
    """An argument that is no array at all: a shape, an axis, a dtype."""
    if isinstance(value, StrictArray | np.ndarray):
        raise TypeError(f"{type(value).__name__} where a shape, an axis, a number or a dtype is meant")
    return value


def check_keywords(name: str, given: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """TypeError for a keyword that is not listed, or that brings an array."""
    if set(given) - set(allowed):
        raise TypeError(f"{name}: keyword arguments {sorted(set(given) - set(allowed))} are not in strict_arrays.py")
    for value in given.values():
        plain(value)


def caller() -> str:
    """The innermost frame outside of this file, as "module.function"."""
    frame = sys._getframe(1)
    while frame.f_globals is globals() and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_globals['__name__'].rpartition('.')[2]}.{frame.f_code.co_qualname}"


def _binary(name: str) -> Callable[[StrictArray, Any], Any]:
    def operate(self: StrictArray, other: Any) -> Any:
        return self._library.wrapped(getattr(self._array, name)(unwrapped(other)))

    return operate


def _in_place(name: str) -> Callable[[StrictArray, Any], StrictArray]:
    def operate(self: StrictArray, other: Any) -> StrictArray:
        getattr(self._array, name)(unwrapped(other))
        return self

    return operate


def _unary(name: str) -> Callable[[StrictArray], Any]:
    return lambda self: self._library.wrapped(getattr(self._array, name)())


def _waiting(name: str, convert: Callable[[Any], Any]) -> Callable[[StrictArray], Any]:
    def wait(self: StrictArray) -> Any:
        self._library.waits_for(name)
        return convert(self._array)

    return wait


OPERATORS = {
    **{f"__{op}__": _binary(f"__{op}__") for op in (*COMPARISONS, *ARITHMETIC, *(f"r{op}" for op in ARITHMETIC))},
    **{f"__i{op}__": _in_place(f"__i{op}__") for op in ARITHMETIC},  # absent, Python would rebind and not write
    **{f"__{op}__": _unary(f"__{op}__") for op in UNARY},
    **{name: _waiting(name, convert) for name, convert in WAITING.items()},
}
for _name, _function in OPERATORS.items():
    setattr(StrictArray, _name, _function)
