"""A long row in parts: through the feed-forward half of a layer, and through the whole encoder."""

from __future__ import annotations

import copy
from unittest import mock

import numpy as np
import pytest
from geometry import one_layer_each, seeded_weights
from helpers import Array
from hypothesis import given, settings
from hypothesis import strategies as st

from t5g2ref import mlp
from t5g2ref.backend import NUMPY
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics
from t5g2ref.params import tree
from t5g2ref.trace import OFF, recorder

ORACLE = Numerics()


@given(part=st.integers(1, 12), length=st.integers(1, 12))
def test_a_long_row_through_in_parts_is_the_whole_row(part: int, length: int) -> None:
    """Every operation of the feed-forward half works on each token by itself."""
    config = one_layer_each()
    layer = tree(seeded_weights(config)).encoder.text_model.layers[0]
    x = np.random.default_rng(length).normal(size=(2, length, config.encoder.hidden_size))
    whole = mlp.feed_forward(ORACLE, layer, config.encoder, x, OFF)
    with mock.patch.object(mlp, "PART", part):
        parts = mlp.feed_forward(ORACLE, layer, config.encoder, x, OFF)
    np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-14)


def test_a_trace_that_takes_no_parts_is_given_whole_rows() -> None:
    config, seen = one_layer_each(), dict[str, Array]()
    layer = tree(seeded_weights(config)).encoder.text_model.layers[0]
    x = np.random.default_rng(5).normal(size=(1, 7, config.encoder.hidden_size))
    with mock.patch.object(mlp, "PART", 2):
        mlp.feed_forward(ORACLE, layer, config.encoder, x, recorder(seen))
    assert seen["mlp.gate_proj"].shape == (1, 7, config.encoder.intermediate_size)
    with pytest.raises(ValueError, match="takes no parts"):
        recorder({}).part(2)


@settings(max_examples=15)
@given(part=st.integers(1, 12), rows=st.integers(1, 12), length=st.integers(1, 30))
def test_the_encoder_in_small_blocks_is_the_encoder_in_one(part: int, rows: int, length: int) -> None:
    """Of queries in attention, and of tokens elsewhere, in a sliding and a full layer."""
    config = one_layer_each()
    flat = {name: value for name, value in seeded_weights(config).items() if not name.startswith("score.")}
    ids = np.random.default_rng(length).integers(7, 300, (1, length))
    whole = T5Gemma2(config, tree(flat), ORACLE).encode(ids).hidden
    small = copy.copy(NUMPY)
    small.block_rows = rows
    with mock.patch.object(mlp, "PART", part):
        parts = T5Gemma2(config, tree(flat), Numerics(backend=small)).encode(ids).hidden
    np.testing.assert_allclose(parts, whole, rtol=1e-11, atol=1e-12)
