"""The feed-forward half of a layer: a long row goes through it in parts."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from geometry import one_layer_each, seeded_weights
from helpers import Array
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref import mlp
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
