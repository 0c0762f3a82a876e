"""The decoding kernel on a card, against the clear path on the same card. Run with: pytest -m gpu"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from geometry import F, S, seeded_weights, small_config
from helpers import ROUNDOFF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5g2ref import backend
from t5g2ref.config import Config
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.processors import chosen, drawn, log_softmax
from t5g2ref.generate.rules import Sampling, narrowed
from t5g2ref.generate.sample import sample
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import SDPA, Numerics
from t5g2ref.params import tree

pytestmark = pytest.mark.gpu
DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def clear() -> Any:
    cupy = pytest.importorskip("cupy", reason="needs CuPy and a CUDA device")
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device; CuPy sees none")
    return backend.find("cupy")


@pytest.fixture(scope="module")
def fast(clear: Any) -> Any:
    """The clear path's device and pool, with the kernel and nothing else beside it."""
    launch = pytest.importorskip("t5g2ref.backend.cuda.decoding.launch")
    stepping = pytest.importorskip("t5g2ref.backend.cuda.decoding.stepping")
    if launch.card(0) is None:
        pytest.skip("needs a card of compute capability 9.0 or later")
    return clear.with_twins(stepping.Stepper(launch.launch, lambda: launch.card(0)).twins())


def config_of(heads: int, group: int, head_dim: int, parts: int, hidden: int, window: int) -> Config:
    small, width = small_config(), heads * group * parts
    decoder = replace(
        small.decoder,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=3,
        layer_types=(S, F, S),
        num_attention_heads=heads * group,
        num_key_value_heads=heads,
        head_dim=head_dim,
        sliding_window=window,
    )
    encoder = replace(small.encoder, hidden_size=width, num_attention_heads=1, num_key_value_heads=1)
    return replace(small, encoder=encoder, decoder=decoder, has_vision=False)


configs = st.builds(
    config_of,
    heads=st.integers(1, 8),
    group=st.integers(1, 8),
    head_dim=st.sampled_from([8, 10, 16, 24, 64, 72, 128, 256]),
    parts=st.integers(1, 9),
    hidden=st.integers(1, 400),
    window=st.integers(1, 40),
)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs, batch=st.integers(1, 8), source=st.integers(1, 150), past=st.integers(1, 60))
def test_tokens_of_any_geometry(
    clear: Any, fast: Any, dtype: Any, config: Config, batch: int, source: int, past: int
) -> None:
    rng = np.random.default_rng(source * 1000 + past)
    nx = Numerics(dtype, SDPA, clear)
    models = [T5Gemma2(config, on_device(config, nx), nx)]
    models.append(models[0].with_numerics(Numerics(dtype, SDPA, fast)))
    ids, start = rng.integers(10, 290, (batch, source)), rng.integers(10, 290, (batch, past))
    mask, own = np.ones_like(ids), np.ones_like(start)
    mask[1:, : source // 2], own[1:, : past // 3] = 0, 0
    options: Any = {"attention_mask": mask, "decoder_input_ids": start, "decoder_attention_mask": own, "stop": ()}
    a, b = (greedy(model, ids, max_new_tokens=6, **options) for model in models)
    wanted, found = (np.asarray(clear.host(x.logits), np.float64) for x in (a, b))
    size = np.linalg.norm(wanted[:, 0])
    assert np.isfinite(found).all()
    # Two ways through three layers, some dozens of roundings each, whose errors add up like their root.
    assert np.linalg.norm(found[:, 0] - wanted[:, 0]) <= 40 * ROUNDOFF[dtype] * size
    host = clear.host(b.ids)
    assert (found.argmax(axis=-1) == host[:, -6:]).all()
    forced = models[0].logits(steps(models[0], ids, mask, start, own, host))  # the clear path along the same ids
    wanted = np.asarray(clear.host(forced), np.float64)
    assert np.linalg.norm(found - wanted) <= 40 * ROUNDOFF[dtype] * np.linalg.norm(wanted)


def on_device(config: Config, nx: Numerics) -> Any:
    with nx.scope():
        return tree({name: nx.array(np.asarray(value)) for name, value in seeded_weights(config).items()})


def steps(model: T5Gemma2, ids: Any, mask: Any, start: Any, own: Any, host: Any) -> Any:
    """Hidden states (B, 6, D) that the six new ids come from."""
    cache = model.start(model.encode(ids, mask))
    front = host.shape[1] - 6
    own = np.concatenate([np.ones((len(own), front - own.shape[1]), own.dtype), own], axis=1)
    hidden, cache = model.decode(host[:, :front], cache, own)
    rest, _ = model.decode(host[:, front:-1], cache)
    return model.nx.xp.concatenate([hidden[:, -1:], rest], axis=1)


def test_rows_end_by_themselves(clear: Any, fast: Any) -> None:
    config = config_of(2, 2, 16, 12, 80, 9)
    nx = Numerics("float32", SDPA, clear)
    model = T5Gemma2(config, on_device(config, nx), nx)
    other = model.with_numerics(Numerics("float32", SDPA, fast))
    ids = np.random.default_rng(3).integers(10, 290, (3, 12))
    free = clear.host(greedy(model, ids, max_new_tokens=80, stop=()).ids)
    stop = sorted({int(free[0, 5]), int(free[1, 50])})
    a, b = (greedy(one, ids, max_new_tokens=80, stop=stop) for one in (model, other))
    np.testing.assert_array_equal(clear.host(b.ids), clear.host(a.ids))
    np.testing.assert_array_equal(clear.host(b.lengths), clear.host(a.lengths))
    np.testing.assert_allclose(clear.host(b.log_probs), clear.host(a.log_probs), atol=1e-4)


SAMPLINGS = (Sampling(), Sampling(top_k=9), Sampling(top_p=0.7), Sampling(1.3, 40, 0.9, 0.02))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_ids_are_drawn_as_defined(clear: Any, fast: Any, dtype: Any, batch: int) -> None:
    """From the logits that the kernel made, by the generator's numbers: ids, scores, and the generator afterwards."""
    config = config_of(2, 2, 16, 12, 80, 9)
    nx = Numerics(dtype, SDPA, fast)
    model = T5Gemma2(config, on_device(config, nx), nx)
    ids = np.random.default_rng(4).integers(10, 290, (batch, 7))
    for sampling in SAMPLINGS:
        numbers, others = np.random.default_rng(5), np.random.default_rng(5)
        found = sample(model, ids, sampling, seed=numbers, max_new_tokens=40, stop=())  # more than one launch
        logits = clear.host(found.logits)
        for step in range(40):
            left = narrowed(np, logits[:, step].astype(np.float32), sampling)
            token = drawn(np, left, others.random(batch))
            np.testing.assert_array_equal(clear.host(found.ids)[:, 1 + step], token)
            scores = chosen(np, log_softmax(np, left), token)
            np.testing.assert_allclose(clear.host(found.log_probs)[:, step], scores, rtol=0, atol=1e-11)
        assert numbers.bit_generator.state == others.bit_generator.state


def test_drawn_rows_end_by_themselves(clear: Any, fast: Any) -> None:
    config = config_of(2, 2, 16, 12, 80, 9)
    nx = Numerics("float32", SDPA, clear)
    model = T5Gemma2(config, on_device(config, nx), nx)
    other = model.with_numerics(Numerics("float32", SDPA, fast))
    ids = np.random.default_rng(4).integers(10, 290, (2, 7))
    free = clear.host(sample(model, ids, SAMPLINGS[-1], seed=5, max_new_tokens=50, stop=()).ids)
    stop, numbers, others = [int(free[0, 4]), int(free[1, 44])], np.random.default_rng(5), np.random.default_rng(5)
    a = sample(model, ids, SAMPLINGS[-1], seed=numbers, max_new_tokens=50, stop=stop)
    b = sample(other, ids, SAMPLINGS[-1], seed=others, max_new_tokens=50, stop=stop)
    np.testing.assert_array_equal(clear.host(b.ids), clear.host(a.ids))
    np.testing.assert_array_equal(clear.host(b.lengths), clear.host(a.lengths))
    np.testing.assert_allclose(clear.host(b.log_probs), clear.host(a.log_probs), atol=1e-4)
    assert numbers.bit_generator.state == others.bit_generator.state
