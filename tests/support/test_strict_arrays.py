"""The rules of `strict_arrays.py`, and that CuPy has them."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import strict_arrays as strict
from strict_arrays import Strict, Waited


@pytest.fixture(params=["strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Any:
    return Strict() if request.param == "strict" else pytest.importorskip("cupy", reason="needs CuPy")


HOST = np.array([1.0, -2.0, 3.0], np.float32)
MIXES: dict[str, Callable[[Any, Any], Any]] = {
    "device + host": lambda xp, x: x + HOST,
    "host + device": lambda xp, x: HOST + x,
    "device += host": lambda xp, x: operator.iadd(x.copy(), HOST),
    "device == host": lambda xp, x: x == HOST,
    "elementwise": lambda xp, x: xp.maximum(x, HOST),
    "host alone": lambda xp, x: xp.sqrt(HOST),
    "where": lambda xp, x: xp.where(x > 0, HOST, 0.0),
    "matmul": lambda xp, x: xp.matmul(x, HOST),
    "concatenate": lambda xp, x: xp.concatenate([x, HOST]),
    "list": lambda xp, x: xp.maximum(x, [1.0, 2.0, 3.0]),
    "to NumPy": lambda xp, x: np.asarray(x),
    "index from the device": lambda xp, x: HOST[operator.index((x > 0).sum())],
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_mixing_raises(mix: Callable[[Any, Any], Any], xp: Any) -> None:
    with pytest.raises(TypeError):
        mix(xp, xp.asarray(HOST))


SCALARS: dict[str, Callable[[Any, Any], Any]] = {
    "Python, right": lambda xp, x: x * 2.5,
    "Python, left": lambda xp, x: 2 - x,
    "NumPy, right": lambda xp, x: x / np.float32(3),
    "NumPy, left": lambda xp, x: np.float64(3) ** x,
    "where": lambda xp, x: xp.where(x > 0, x, 0.0),
    "maximum": lambda xp, x: xp.maximum(x, 0),
    "reduced": lambda xp, x: (x * x).sum() / 3,
}


@pytest.mark.parametrize("form", SCALARS.values(), ids=SCALARS)
def test_scalars_mix_with_numpys_types(form: Callable[[Any, Any], Any], xp: Any) -> None:
    actual, expected = form(xp, xp.asarray(HOST)), np.asarray(form(np, HOST))
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(xp.asnumpy(actual), expected, rtol=1e-6)  # a GPU's pow is not NumPy's to the last bit


REFUSED: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
    "host without axes": (TypeError, lambda xp, x: x * np.asarray(2.0)),
    "host as index": (TypeError, lambda xp, x: x[np.array([0, 1])]),
    "list as index": (TypeError, lambda xp, x: x[[0, 1]]),
    "host assigned": (TypeError, lambda xp, x: operator.setitem(x.copy(), slice(None), HOST)),
    "NumPy's function": (TypeError, lambda xp, x: np.sqrt(x)),
    "a device array as a shape": (TypeError, lambda xp, x: xp.ones(x)),
    "a list of device arrays": (TypeError, lambda xp, x: xp.asarray([x])),
    "text": (ValueError, lambda xp, x: xp.asarray(["a"])),
    "unknown function": (AttributeError, lambda xp, x: xp.einsum("i->", x)),
    "unknown method": (AttributeError, lambda xp, x: x.clip(0, 1)),
    "unknown keyword of a function": (TypeError, lambda xp, x: xp.exp(x, out=x)),
    "unknown keyword of a method": (TypeError, lambda xp, x: x.sum(where=x > 0)),
    "write into an input": (ValueError, lambda xp, x: operator.iadd(x, 1)),
    "assignment into an input": (ValueError, lambda xp, x: operator.setitem(x[1:], 0, 1.0)),
}


@pytest.mark.parametrize(("error", "call"), REFUSED.values(), ids=REFUSED)
def test_what_else_is_refused(error: Any, call: Callable[[Any, Any], Any]) -> None:
    library = Strict()
    with pytest.raises(error):
        call(library, library.asarray(HOST))
    assert not library.waits


WAITS: dict[str, Callable[[Any], Any]] = {
    "bool": lambda x: bool(x.any()),
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x.max()),
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "iteration": lambda x: list(x),
    "text": lambda x: f"{x.min()}",
    "to the host": lambda x: x._library.asnumpy(x),
    "mask": lambda x: x[x > 0],
    "mask assigned": lambda x: operator.setitem(x.copy(), x > 0, 0.0),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waits_are_counted_and_can_be_forbidden(wait: Callable[[Any], Any]) -> None:
    library = Strict()
    x = library.asarray(HOST)
    wait(x)
    assert library.waits == ["test_strict_arrays.<lambda>"]
    with library.without_waits(), pytest.raises(Waited, match=r"test_strict_arrays\.<lambda>"):
        wait(x)
    wait(x)
    assert len(library.waits) == 2


def test_the_strict_library_has_only_what_cupy_has() -> None:
    """Names alone: no device is needed, so that this runs wherever CuPy is installed."""
    cupy = pytest.importorskip("cupy", reason="needs CuPy, though no device")
    absent = [name for name in (*strict.FUNCTIONS, *strict.CONSTANTS) if not hasattr(cupy, name)]
    members = (*strict.METHODS, *strict.ATTRIBUTES, *strict.COPYING, *strict.OPERATORS, "__iter__", "__len__")
    absent += [name for name in members if not hasattr(cupy.ndarray, name)]
    assert not absent
    assert not hasattr(cupy.ndarray, "__index__")
    assert not list(foreign_keywords(cupy))


def foreign_keywords(cupy: Any) -> Iterator[str]:
    for owner, table in ((cupy, strict.FUNCTIONS), (cupy.ndarray, strict.METHODS)):
        for name, keywords in table.items():
            known = parameters(getattr(owner, name)) if keywords else set()
            yield from (f"{name}({keyword}=)" for keyword in keywords if keyword not in known)


def parameters(function: Any) -> set[str]:
    """Names of the parameters; of a compiled method, from the signature that its docstring begins with."""
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:
        return set(re.findall(r"\w+", function.__doc__.splitlines()[0]))
