"""Calls recorded as graphs, against the same calls of the definitions on the same card. Run with: pytest -m gpu"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from geometry import seeded_weights, small_config

from t5g2ref import backend
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import SDPA, Numerics
from t5g2ref.params import tree

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def clear() -> Any:
    cupy = pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device; CuPy sees none")
    return backend.find("cupy")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replay_has_the_bits_of_the_call(clear: Any, dtype: Any) -> None:
    graphs = pytest.importorskip("t5g2ref.backend.cuda.graphs")
    recorder, rng = graphs.Recorder(), np.random.default_rng(1)
    nx = Numerics(dtype, SDPA, clear)
    with nx.scope():
        weights = tree({name: nx.array(np.asarray(value)) for name, value in seeded_weights(small_config()).items()})
    plain = T5Gemma2(small_config(), weights, nx)
    model = replace(plain, nx=Numerics(dtype, SDPA, clear.with_twins(recorder.twins())))
    for _ in range(5):
        ids, start, mask = rng.integers(10, 290, (2, 30)), rng.integers(10, 290, (2, 9)), np.ones((2, 30), int)
        mask[1, : rng.integers(1, 20)] = 0
        a, b = (one(ids, start, attention_mask=mask) for one in (plain, model))
        for found, expected in ((b.encoded.hidden, a.encoded.hidden), (b.logits, a.logits)):
            assert clear.host(found).tobytes() == clear.host(expected).tobytes()
        a, b = (one.decode(start[:, :4], cache)[0] for one, cache in ((plain, a.cache), (model, b.cache)))
        assert clear.host(b).tobytes() == clear.host(a).tobytes()
    kept = [found for of in recorder._kept.values() for found in of.values()]
    assert len(kept) >= 3
    assert sum(isinstance(found, graphs.Recording) for found in kept) >= 3, kept  # encoder, start, decoder
