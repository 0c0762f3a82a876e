"""The same source on CuPy: judged as any peer is, tap by tap, against NumPy in float64. Run with: pytest -m gpu"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conformance.cases import Case, build
from conformance.checkpoints import resolve
from conformance.dump import Dump
from conformance.judge import judge
from conformance.oracle import program
from conformance.peers import Target
from t5g2ref.backend import find
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import SDPA, DType, Numerics
from t5g2ref.params import tree
from t5g2ref.trace import Trace

pytestmark = pytest.mark.gpu

TARGET = resolve("tiny", synthetic=False)[0]
CASES = build(TARGET.config)


class OnCupy:
    """t5g2ref itself on the device, its weights placed there, every tap copied back."""

    def __init__(self, dtype: DType) -> None:
        self.name, self.dtype = f"t5g2ref:cupy:{dtype}", dtype
        self._cupy = pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
        if not self._cupy.cuda.is_available():
            pytest.skip("needs a CUDA device; CuPy sees none")

    def versions(self) -> dict[str, str]:
        return {"cupy": self._cupy.__version__}

    def open(self, target: Target) -> None:
        self._target = target

    def close(self) -> None:
        pass

    def run(self, case: Case, dump: Dump) -> None:
        nx = Numerics(self.dtype, SDPA, find("cupy"))
        arrays = {**self._target.weights, **case.head(self._target.config.decoder.hidden_size)}
        weights = tree({name: nx.array(value) for name, value in arrays.items()})
        config = replace(self._target.config, num_labels=case.num_labels)

        def trace_of(call: int) -> Trace:
            while dump.calls <= call:
                dump.new_call()
            return Trace(lambda name, value: dump.put(name, self._cupy.asnumpy(value)) or value)

        program(case)(T5Gemma2(config, weights, nx), trace_of)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cupy_conforms(case: Case, dtype: Any) -> None:
    peer = OnCupy(dtype)
    peer.open(TARGET)
    result = judge(peer, TARGET, case)
    assert not result.error
    assert result.passed, result.culprit
    worst = result.worst()
    assert worst is not None
    print(f"{dtype} {case.name}: worst local ratio {worst.worst:.2f} at {worst.tap}")


def test_float32_products_are_not_tf32() -> None:
    """A product of 1 + 2⁻²⁰ by 1 is exact in float32 and loses its last bits in TF32."""
    cupy = pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device; CuPy sees none")
    nx, n = Numerics("float32", SDPA, find("cupy")), 256
    x = cupy.full((n, n), 1 + 2.0**-20, dtype="float32")
    y = nx.linear(x, cupy.eye(n, dtype="float32"))
    assert np.array_equal(cupy.asnumpy(y), cupy.asnumpy(x))
