"""transformers' own modules in half precision on the CPU against the emulation, operation by operation.

What only copies, adds or multiplies is equal to the bit. Where a sum or a transcendental function is formed in float32
first, the two libraries' float32 results differ in their last bits, and a few of them fall on the other side of a tie.
Measured shares: `python tools/rounding_distance.py`; those of a machine without AVX-512 may differ a little.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import HALF
from processes import ROOT

pytest.importorskip("torch", reason="needs torch: its operations are compared")
pytest.importorskip("transformers", reason="needs transformers: its modules are compared")

sys.path.append(str(ROOT / "tools"))

import rounding_distance as distance

pytestmark = pytest.mark.peer

EQUAL = ("embedding", "RoPE rotation", "gate product", "residual add", "average pooling")
ATTENTION = {"attention, eager": "eager", "attention, sdpa": "flash"}
FLOAT32 = ("cross-entropy",)  # both in float32: last bits only
BIASED = ("linear with bias", "patch convolution")
DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
TWO_SIDED = 2.5  # each up to the legal error from the truth, on either side; the largest of many, so not quite 2


@DTYPES
@pytest.mark.parametrize("name", EQUAL)
def test_equal_to_the_bit(name: str, dtype: Any) -> None:
    for row in distance.compared(name, dtype):
        assert (row.same, row.ulps, row.legal) == (1.0, 0, 0.0), row


@DTYPES
@pytest.mark.parametrize("name", [n for n in distance.OPERATIONS if n not in (*EQUAL, *ATTENTION, *FLOAT32)])
def test_all_but_a_few_roundings(name: str, dtype: Any) -> None:
    """But where FLASH adds a bias after a rounding, as this library does not on a CPU."""
    for row in distance.compared(name, dtype):
        twice = row.profile == "flash" and name in BIASED
        assert row.same >= (0.7 if twice else 0.98), row
        assert row.legal <= TWO_SIDED, row


@DTYPES
def test_attention_follows_its_own_profile(dtype: Any) -> None:
    """Eager rounds where EAGER says. torch's fused kernel rounds the softmax's numerators before their sum divides, as
    FLASH does; its exponential has its own last bits."""
    for name, profile in ATTENTION.items():
        rows = {row.profile: row for row in distance.compared(name, dtype)}
        least = 0.99 if profile == "eager" else {"bfloat16": 0.95, "float16": 0.7}[dtype]
        assert rows[profile].same >= least, rows[profile]
        assert all(rows[profile].same > row.same + 0.2 for p, row in rows.items() if p != profile), (
            "they can be told apart"
        )
        assert rows[profile].legal <= TWO_SIDED


def test_the_loss_is_float32_on_both_sides() -> None:
    for row in distance.compared("cross-entropy", "bfloat16"):
        assert row.same > 0.5
        assert row.ulps <= 4


@pytest.mark.parametrize("kind", [*HALF.values(), np.float32])
def test_steps(kind: Any) -> None:
    one, least = np.ones(1, kind), np.nextafter(np.zeros(1, kind), np.ones(1, kind))
    after = np.nextafter(one, one + one)
    for a, b, apart in ((one, one, 0), (one, after, 1), (after, one, 1), (-one, -after, 1), (-least, least, 2)):
        assert distance.steps(a, b).tolist() == [apart]
    assert distance.steps(np.array([-0.0], kind), np.array([0.0], kind)).tolist() == [0]


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: erf in place of tanh, and a value that is not finite."""
    true = distance.OPERATIONS["GELU tanh"]
    tensor, ours = true(distance.Kit("float16"))
    monkeypatch.setitem(distance.OPERATIONS, "GELU tanh", lambda k: (tensor * 1.01, ours))
    assert all(row.same < 0.5 and row.legal > 10 for row in distance.compared("GELU tanh", "float16"))
    monkeypatch.setitem(distance.OPERATIONS, "GELU tanh", lambda k: (tensor * float("nan"), ours))
    with pytest.raises(ValueError, match="GELU tanh: a value is not finite"):
        list(distance.compared("GELU tanh", "float16"))


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    few = {name: distance.OPERATIONS[name] for name in ("embedding", "q/k norm")}
    monkeypatch.setattr(distance, "OPERATIONS", few)
    assert distance.main(["--dtype", "bfloat16", "--json", str(tmp_path / "rows.json")]) == 0
    shown = capsys.readouterr().out
    assert "| embedding | 100 % | 0 | 0.00 | 100 % | 0 | 0.00 | 100 % | 0 | 0.00 |" in shown
    rows = json.loads((tmp_path / "rows.json").read_text())["bfloat16"]
    assert [(row["operation"], row["profile"]) for row in rows] == [
        (n, p) for n in few for p in ("eager", "sdpa", "flash")
    ]
    assert rows[0] == {"operation": "embedding", "profile": "eager", "same": 1.0, "ulps": 0, "legal": 0.0}
