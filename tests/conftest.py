"""Shared fixtures: one small geometry in which every branch bites, seeded weights, and a model in any precision."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from helpers import Array, frozen, generator, rounded
from hypothesis import settings

from t5g2ref import params
from t5g2ref.config import Config, Rope, Ropes, TextConfig, VisionConfig
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub

# The same examples in every run: a failure elsewhere is a failure here. No deadline: the cores are shared.
settings.register_profile("t5g2ref", derandomize=True, deadline=None, database=None)
settings.load_profile("t5g2ref")

S, F = "sliding_attention", "full_attention"


# A peer's next release may warn of anything: that is shown at the end and fails no test. Our own warnings do.
LENIENT = pytest.mark.filterwarnings("default", "error:::(t5g2ref|conformance)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none (`-ra` prints the reason); mark what needs a peer."""
    reason = _no_gpu()
    for item in items:
        if reason and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
        if "peer_installed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.peer)
        if item.get_closest_marker("peer"):
            item.add_marker(LENIENT)


@pytest.fixture(scope="session")
def peer_installed() -> None:
    """torch and transformers, or the test is skipped; what asks for this is marked `peer`."""
    pytest.importorskip("torch", reason="needs torch: transformers is the comparison")
    pytest.importorskip("transformers", reason="needs transformers: it is the comparison")


def _no_gpu() -> str:
    if importlib.util.find_spec("cupy") is None:
        return "needs CuPy, which is not installed"
    import cupy

    try:
        return "" if cupy.cuda.runtime.getDeviceCount() else "needs a CUDA device, CuPy sees none"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"needs a CUDA device: {error}"


@pytest.fixture(autouse=True)
def _arithmetic_warns() -> Iterator[None]:
    """0 / 0, overflow and NaN made anew warn, and pyproject.toml makes a warning an error; underflow to 0 is meant."""
    with np.errstate(divide="warn", over="warn", invalid="warn", under="ignore"):
        yield


def small_config() -> Config:
    """No two sizes that could be mistaken for each other are equal: kv heads ≥ 2 and groups ≥ 2 (2 and 4), head_dim is
    not hidden / heads, an odd and an even window, two thetas and a factor a stack, pad 3 and not 0."""
    encoder = TextConfig(
        vocab_size=311,
        hidden_size=48,
        intermediate_size=88,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=14,
        max_position_embeddings=256,
        rms_norm_eps=2e-3,
        query_pre_attn_scalar=20.0,
        sliding_window=7,
        layer_types=(S, F, S, S, F),
        rope_parameters=Ropes(Rope(777.0), Rope(31_000.0, 4.0)),
        pad_token_id=3,
        bos_token_id=6,
        eos_token_id=(4,),
    )
    decoder = TextConfig(
        vocab_size=311,
        hidden_size=48,
        intermediate_size=68,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=192,
        rms_norm_eps=5e-3,
        query_pre_attn_scalar=12.0,
        sliding_window=6,
        layer_types=(S, S, F, S, F, S),
        rope_parameters=Ropes(Rope(1234.0), Rope(52_000.0, 6.0)),
        final_logit_softcapping=30.0,
        pad_token_id=3,
        bos_token_id=6,
        eos_token_id=(4,),
    )
    return Config(
        encoder,
        decoder,
        VisionConfig(36, 56, 3, 3, image_size=32, patch_size=4, layer_norm_eps=1e-3),
        mm_tokens_per_image=16,
        boi_token_index=300,
        eoi_token_index=301,
        image_token_index=302,
        num_labels=5,
    )


@cache
def weight(name: str, shape: tuple[int, ...]) -> Array:
    """One parameter, seeded by its name: float32 on the bfloat16 grid, so that every precision runs the same model.

    All non-zero: a norm weight, bias or EOI row of zeros would hide its own absence.
    """
    if name.endswith("embed_tokens.weight"):
        scale = 0.5  # logits then spread over about 3.5, inside the softcap of 30
    elif len(shape) > 1 and "position_embedding" not in name:
        last = shape[0] if name.endswith("mm_input_projection_weight") else int(np.prod(shape[1:]))
        scale = last**-0.5
    else:
        scale = 0.3
    values = rounded(generator(name).normal(size=shape).astype(np.float32) * np.float32(scale), "bfloat16")
    assert np.all(values != 0), name
    return frozen(values)


def seeded_weights(config: Config) -> dict[str, Array]:
    """Every parameter of this geometry, the classification head included."""
    return {name: weight(name, shape) for name, shape in params.shapes(config, "classification").items()}


@pytest.fixture(scope="session")
def config() -> Config:
    return small_config()


@pytest.fixture(scope="session")
def weights(config: Config) -> dict[str, Array]:
    """{canonical name: read-only array}."""
    return seeded_weights(config)


@pytest.fixture(scope="session")
def model(config: Config) -> Callable[..., T5Gemma2]:
    """A factory: `model()` is the float64 oracle, `model("float32")`, `model(numerics=…)`, `model(config=…)`."""

    def make(dtype: Any = "float64", *, config: Config = config, numerics: Numerics | None = None) -> T5Gemma2:
        return T5Gemma2(config, params.tree(seeded_weights(config)), numerics or Numerics(dtype))

    return make
