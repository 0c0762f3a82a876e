"""Configurations that no release has and transformers computes: biases in attention, other activations, plain RoPE.

Each against the one-page model in float64, and, by the judge at every tap, against transformers in float32.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from config_files import D, T, put, released
from geometry import seeded_weights, small_config
from helpers import ROUNDOFF, close, frozen, normal, precisely, rounded, same_bits
from one_page_model import Naive
from small_inputs import Factory, image_ids, near, pictures, tokens

from conformance.oracle.worst_case import ceiling
from t5g2ref.activation import ACTIVATIONS, erf
from t5g2ref.backend import NUMPY
from t5g2ref.config import Config, Rope, Ropes
from t5g2ref.config.read import ACTIVATIONS as READ
from t5g2ref.notes import noted
from t5g2ref.numerics import Numerics
from t5g2ref.params import TIED, canonical, shapes

PLAIN = Ropes(Rope(900.0, 2.0), Rope(40_000.0))  # linear on sliding layers, default on full ones


def changed(**fields: Any) -> Config:
    config = small_config()
    return replace(config, encoder=replace(config.encoder, **fields), decoder=replace(config.decoder, **fields))


LEGAL = {
    "attention_bias": changed(attention_bias=True),
    "one stack's bias": replace(small_config(), encoder=replace(small_config().encoder, attention_bias=True)),
    "gelu": changed(hidden_activation="gelu"),
    "silu": changed(hidden_activation="silu"),
    "relu": changed(hidden_activation="relu"),
    "default RoPE on full layers": changed(rope_parameters=PLAIN),
}


@pytest.mark.parametrize("name", LEGAL)
def test_the_one_page_model_agrees(name: str, model: Factory) -> None:
    # Broken by a bias that the cross keys or o_proj lack, by another activation, by a factor on full layers (D21, D22).
    config = LEGAL[name]
    net, naive = model(config=config), Naive(config, seeded_weights(config))
    ids, answer, pixels = image_ids(), tokens("b", 2, 12), pictures("p", 3)
    everything = [np.ones(x.shape, int) for x in (ids, answer)]
    places = [np.arange(x.shape[1])[None] for x in (ids, answer)]
    encoded = naive.encode(ids, everything[0], places[0], pixels)
    hidden = naive.decode(answer, everything[1], places[1], encoded, everything[0])
    out = net(input_ids=ids, decoder_input_ids=answer, pixel_values=pixels)
    near(out.encoded.hidden, encoded)
    near(out.logits, naive.logits(hidden))


def test_each_changes_something(model: Factory) -> None:
    """The comparison above is not one of equal models."""
    given = {"input_ids": tokens("a", 1, 9), "decoder_input_ids": tokens("b", 1, 8)}
    found = [model(config=config)(**given).logits for config in (small_config(), *LEGAL.values())]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[:i])


def test_which_tensors_have_a_bias() -> None:
    # transformers 5.24 gives q, k, v and o one, in both stacks, and nothing else of the text.
    plain = set(shapes(small_config()))
    more = {name: shape for name, shape in shapes(LEGAL["attention_bias"]).items() if name not in plain}
    assert len(more) == 4 * (5 + 6)
    assert more["encoder.text_model.layers.0.self_attn.q_proj.bias"] == (6 * 14,)
    assert more["decoder.layers.5.self_attn.v_proj.bias"] == (2 * 10,)
    assert more["decoder.layers.5.self_attn.o_proj.bias"] == (48,)
    alone = [name for name in shapes(LEGAL["one stack's bias"]) if name not in plain]
    assert len(alone) == 4 * 5
    assert all(name.startswith("encoder.text_model.") for name in alone)


@pytest.mark.usefixtures("peer_installed")
def test_transformers_has_the_same_tensors() -> None:
    import transformers

    config = LEGAL["attention_bias"]
    theirs = transformers.T5Gemma2ForConditionalGeneration(transformers.T5Gemma2Config(**config.to_dict()))
    found = {canonical(key): tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: shape for key, shape in found.items() if key not in TIED} == shapes(config)


def test_the_file_says_and_reads_them() -> None:
    for config in LEGAL.values():
        assert Config.from_dict(config.to_dict()) == config
    raw = put(put(released(), f"{T}.hidden_activation", "swish"), f"{D}.attention_bias", True)
    config = Config.from_dict(raw)
    assert (config.encoder.hidden_activation, config.encoder.attention_bias) == ("swish", False)
    assert (config.decoder.hidden_activation, config.decoder.attention_bias) == ("gelu_pytorch_tanh", True)
    assert tuple(ACTIVATIONS) == READ


@pytest.mark.parametrize("place", ["rope_parameters.full_attention", "rope_scaling"])
def test_a_factor_that_default_rope_has_none_of(place: str, tmp_path: Path) -> None:
    # transformers 5.24 computes plain RoPE there and warns of an unrecognized key.
    rope = {"rope_type": "default", "rope_theta": 80000.0, "factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(put(released(), f"{T}.{place}", rope)))
    notes: list[str] = []
    with noted(notes):
        config = Config.load(tmp_path)
    assert config.encoder.rope_parameters["full_attention"] == Rope(80000.0, 1.0)
    assert config.decoder.rope_parameters["full_attention"] == Rope(80000.0, 4.0)
    (said,) = notes
    assert "encoder.text_config.rope_parameters.full_attention: rope_type is 'default'" in said
    assert "(4.0) is not applied" in said


POINTS = frozen([0.0, 1e-30, -1e-30, 0.4, -0.5, 0.7, 1.0, -1.0, 2.5, -2.5, -4.0, 6.0, -6.0, 90.0, -90.0, 1e5, -1e5])
EXACTLY = {
    "gelu": lambda row: [v / 2 * mp.erfc(-v / mp.sqrt(2)) for v in row],
    "silu": lambda row: [v / (1 + mp.exp(-v)) for v in row],
    "relu": lambda row: [max(v, mp.mpf(0)) for v in row],
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", EXACTLY)
def test_against_mpmath(name: str, dtype: Any) -> None:
    # gelu: 1 + erf cancels where x is negative, so the error is absolute: |x| / 2 times erf's own (1e-13 in float64, a
    # rounding in float32, and the argument's two at most 0.5 u) and three roundings. silu: five relative roundings.
    x = POINTS.astype(dtype)
    u = ROUNDOFF[dtype]
    bound = {"gelu": np.abs(POINTS) * (1e-13 + 3 * u), "silu": 8 * u * np.abs(POINTS), "relu": 0.0}[name]
    close(ACTIVATIONS[name](Numerics(dtype), frozen(x)), precisely(EXACTLY[name], x), atol=bound, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", EXACTLY)
def test_in_a_half_type_it_is_the_wide_result_rounded_once(name: str, dtype: Any) -> None:
    x = frozen(rounded(normal(name, 2000, scale=3.0, dtype="float32"), dtype))
    wide = ACTIVATIONS[name](Numerics("float32"), x)
    same_bits(ACTIVATIONS[name](Numerics(dtype), x), rounded(wide, dtype))


def test_erf() -> None:
    # math.erf is within an ulp. The approximation's own error is 1e-13; a grid of 1e-3 crosses both of its seams.
    x = np.arange(-7, 7, 1e-3)
    close(erf(np, x), np.array([math.erf(v) for v in x]), atol=1e-13)


@pytest.mark.parametrize("name", EXACTLY)
def test_a_bound_holds_the_float32_run_and_not_another_function(name: str) -> None:
    x = frozen(normal(f"{name} bound", 50, 64, scale=3.0, dtype="float32").astype(np.float64))
    bound = ACTIVATIONS[name](ceiling(NUMPY, "float32"), x)
    truth = ACTIVATIONS[name](Numerics(), x)
    found = ACTIVATIONS[name](Numerics("float32"), x.astype(np.float32))
    assert (np.abs(found - truth) <= bound).all()
    others = [ACTIVATIONS[other](Numerics(), x) for other in ("gelu_pytorch_tanh", *EXACTLY) if other != name]
    assert all((np.abs(other - truth) > bound).any() for other in others)
