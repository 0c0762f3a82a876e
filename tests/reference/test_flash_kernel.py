"""The kernels of attention without a card: on the CPU in emulation, against float64. Those of Hopper too, in turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from attention_truth import bound, calls, truth
from cupy_of_numpy import Memory, installed
from emulated import launch_flash, needs_compiler
from helpers import HALF, Array
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from t5g2ref.attention import Keys
from t5g2ref.cache import KeyValue
from t5g2ref.masks import Band
from t5g2ref.numerics import FAST, Numerics

pytestmark = needs_compiler
FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
TYPES: dict[str, Any] = {"float32": np.float32, **HALF}
WIDTHS = {"float32": [72], "bfloat16": [40, 72, 250, 256], "float16": [64, 104]}  # a kernel takes a second to compile


@pytest.fixture
def attend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, Array]]:
    """`flash.attend` of this file's calls, by the emulated kernels: the kernel's name, and what it made."""
    _, _, flash, _ = installed(monkeypatch)

    def attended(nx: Numerics, q: Array, groups: list[Keys], late: bool, **rule: Any) -> tuple[str, Array]:
        used = []

        def launch(device: int, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
            used.append(kernel.name)
            launch_flash(kernel, flash.FILES[kernel.name], grid, args, late)

        monkeypatch.setattr(flash, "launch", launch)
        made = flash.attend(never, nx, q, groups, **rule)
        return used[0], made.astype(np.float64)

    return attended


def never(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("the definition was asked")


@st.composite
def asked(draw: Any) -> dict[str, Any]:
    """Calls of the widths that are compiled here."""
    call: dict[str, Any] = draw(calls())
    return call | {"width": draw(st.sampled_from(WIDTHS[call["dtype"]])), "late": draw(st.booleans())}


LONG = {
    "dtype": "bfloat16",
    "batch": 1,
    "kv_heads": 1,
    "sharing": 2,
    "length": 130,
    "first": 500,
    "cap": None,
    "seed": 1,
}
LONG |= {"groups": [(700, 0, 255, 256, False), (9, 3, None, None, True)], "split": True, "late": True}


@FEW
@given(asking=asked())
@example(asking={**LONG, "width": 72, "groups": [(900, 0, None, None, False)]})
@example(asking={**LONG, "width": 72, "groups": [(900, 0, None, 0, True)], "late": False})
@example(asking={**LONG, "width": 256})
@example(asking={**LONG, "width": 256, "late": False, "cap": 3.0})
@example(asking={**LONG, "width": 64, "dtype": "float16"})
@example(asking={**LONG, "width": 104, "dtype": "float16"})
@example(asking={**LONG, "width": 40})
@example(asking={**LONG, "width": 250})
@example(asking={**LONG, "width": 72, "dtype": "float32"})
@example(asking={**LONG, "width": 72, "groups": [(9, 0, 0, 0, False)]})  # no query sees a key
@example(asking={**LONG, "width": 72, "groups": [(9, 0, 0, 0, False), (300, 0, None, None, False)]})
def test_attention(attend: Any, asking: dict[str, Any]) -> None:
    width, batch, kv_heads, dtype = (asking[n] for n in ("width", "batch", "kv_heads", "dtype"))
    rng = np.random.default_rng(asking["seed"])

    def drawn(count: int, length: int) -> Array:
        shape = (batch, length, count, width) if asking["split"] else (batch, count, length, width)
        x = aligned(rng.normal(size=shape).astype(TYPES[dtype]))
        return x.swapaxes(1, 2) if asking["split"] else x

    q, groups = drawn(kv_heads * asking["sharing"], asking["length"]), []
    for length, start, back, ahead, padded in asking["groups"]:
        kv = KeyValue(drawn(kv_heads, length), drawn(kv_heads, length), start)
        valid = (rng.random((batch, length)) < 0.8).view(Memory) if padded else None
        groups.append(Keys(kv, valid, Band(back, ahead)))
    rule: dict[str, Any] = {"scale": width**-0.5, "cap": asking["cap"]}
    kernel, found = attend(Numerics(dtype, FAST), q, groups, asking["late"], first_query=asking["first"], **rule)
    usual = "flash_float" if dtype == "float32" else "flash_half" if width in (40, 250) else "flash_hopper"
    assert kernel == usual
    there = [Keys(KeyValue(*map(wide, (g.kv.keys, g.kv.values)), g.kv.start), g.valid, g.band) for g in groups]
    expected, sizes, scores = truth(wide(q), there, first=asking["first"], **rule)
    keys = sum(length for length, *_ in asking["groups"])
    error = np.abs(found - expected)
    assert (error <= bound(dtype, width, keys, expected, sizes, scores)).all()  # a NaN is not


def aligned(x: Array) -> Array:
    """x where a card would have it: at a multiple of 256 bytes."""
    room = np.zeros(x.nbytes + 256, np.uint8)
    start = -room.ctypes.data % 256
    there = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    there[...] = x
    return there.view(Memory)


wide = partial(np.asarray, dtype=np.float64)
