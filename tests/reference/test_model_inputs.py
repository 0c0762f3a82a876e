"""The door: what the model refuses, and what it takes in several forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from geometry import seeded_weights
from helpers import frozen, same_bits
from small_inputs import Factory, ragged, tokens

from t5g2ref import params
from t5g2ref.config import Config
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics

IDS = tokens("door", 2, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": [7, 8]}, r"^input_ids: expected a non-empty \(batch, length\) array, found shape \(2,\)"),
        ({"input_ids": np.zeros((2, 0), int)}, r"^input_ids: expected a non-empty .*\(2, 0\)"),
        ({"input_ids": np.zeros((0, 2), int)}, r"^input_ids: expected a non-empty .*\(0, 2\)"),
        ({"input_ids": [[1.0, 2.0]]}, r"^input_ids: expected integers, found dtype float64"),
        ({"input_ids": [[True, False]]}, r"^input_ids: expected integers, found dtype bool"),
        ({"input_ids": [[7, 311]]}, r"^input_ids: ids must lie in \[0, 311\), found 311"),
        ({"input_ids": [[7, -1]]}, r"^input_ids: ids must lie in \[0, 311\), found -1"),
        ({"decoder_input_ids": [[7, 400]] * 2}, r"^decoder_input_ids: ids must lie in \[0, 311\), found 400"),
        ({"decoder_input_ids": [[-100, 7]] * 2}, r"^decoder_input_ids: ids must lie in \[0, 311\), found -100"),
        ({"decoder_input_ids": 7}, r"^decoder_input_ids: expected a non-empty .*\(\)"),
        ({"decoder_input_ids": [[7]]}, r"^decoder_input_ids have 1 rows but the cache was started with 2"),
        ({"decoder_input_ids": None}, r"^give decoder_input_ids, or labels"),
        ({"attention_mask": np.ones((2, 4))}, r"^attention_mask: expected shape \(2, 5\) as the ids, found \(2, 4\)"),
        ({"attention_mask": np.ones(5)}, r"^attention_mask: expected shape \(2, 5\) as the ids, found \(5,\)"),
        ({"attention_mask": np.full((2, 5), 2)}, r"^attention_mask: expected only 1 \(keep\) and 0 \(padding\)"),
        ({"attention_mask": np.full((2, 5), -1e9)}, r"^attention_mask: expected only 1 .* and 0"),  # an additive one
        ({"attention_mask": np.full((2, 5), np.nan)}, r"^attention_mask: expected only 1 .* and 0"),
        ({"decoder_attention_mask": np.ones((2, 9))}, r"^decoder_attention_mask: expected shape \(2, 4\) .*\(2, 9\)"),
        (
            {"position_ids": np.zeros((2, 4), int)},
            r"^position_ids: expected shape \(2, 5\) or \(1, 5\), found \(2, 4\)",
        ),
        ({"position_ids": np.zeros((3, 5), int)}, r"^position_ids: expected shape .*found \(3, 5\)"),
        ({"position_ids": np.zeros(5, int)}, r"^position_ids: expected shape .*found \(5,\)"),
        ({"position_ids": np.full((2, 5), -1)}, r"^position_ids: expected integers >= 0, found dtype int64, least -1"),
        ({"position_ids": np.zeros((2, 5))}, r"^position_ids: expected integers >= 0, found dtype float64"),
        (
            {"decoder_position_ids": np.zeros((1, 5), int)},
            r"^decoder_position_ids: expected shape \(2, 4\) or \(1, 4\)",
        ),
        (
            {"pixel_values": np.zeros((3, 32, 32))},
            r"^pixel_values: expected \(images, 3, 32, 32\), found \(3, 32, 32\)",
        ),
        ({"pixel_values": np.zeros((1, 3, 28, 28))}, r"^pixel_values: expected .*found \(1, 3, 28, 28\)"),
        ({"pixel_values": np.zeros((1, 32, 32, 3))}, r"^pixel_values: expected .*found \(1, 32, 32, 3\)"),
        ({"pixel_values": np.zeros((0, 3, 32, 32))}, r"^pixel_values: expected .*found \(0, 3, 32, 32\)"),
        ({"pixel_values": np.full((1, 3, 32, 32), np.nan)}, r"^pixel_values: found NaN or infinity; expected finite"),
        ({"pixel_values": np.full((1, 3, 32, 32), np.inf)}, r"^pixel_values: found NaN or infinity; expected finite"),
    ],
)
def test_bad_input_is_named_with_what_was_expected_and_found(
    model: Factory, changes: dict[str, Any], message: str
) -> None:
    given = {"input_ids": IDS, "decoder_input_ids": tokens("b", 2, 4)} | changes
    with pytest.raises(ValueError, match=message):
        model()(**given)


def test_a_language_model_is_no_classifier(config: Config) -> None:
    bare = params.tree({name: seeded_weights(config)[name] for name in params.shapes(config)})
    with pytest.raises(ValueError, match=r"no score\.out_proj"):
        T5Gemma2(config, bare, Numerics()).classify(IDS)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16", "int16"])
def test_any_integers_will_do_and_lists_too(model: Factory, dtype: str) -> None:
    net, decoder_ids = model(), tokens("b", 2, 4)
    expected = net(IDS, decoder_ids).logits
    same_bits(net(frozen(IDS, dtype), frozen(decoder_ids, dtype)).logits, expected)
    same_bits(net(IDS.tolist(), decoder_ids.tolist()).logits, expected)


@pytest.mark.parametrize("dtype", ["bool", "int64", "float32"])
def test_a_mask_of_any_kind_means_the_same(model: Factory, dtype: str) -> None:
    mask = ragged(IDS.shape, "right")
    expected = model().encode(IDS, mask)
    found = model().encode(IDS, frozen(mask, dtype))
    same_bits(found.hidden, expected.hidden)
    same_bits(found.valid, mask == 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[4, 7]], r"labels: expected shape \(1, 3\), found \(1, 2\)"),
        ([[4, 7, 311]], r"labels: expected -100 or \[0, 311\), found 311"),
        ([[4, 7, -1]], r"labels: expected -100 or \[0, 311\), found -1"),
        ([[4.0, 7.0, 1.0]], "labels: expected integers, found dtype float64"),
    ],
)
def test_labels_of_the_language_model_are_checked(labels: Any, message: str, model: Any) -> None:
    """A label of −1 would silently be the last class, and labels of another length a sum over other rows."""
    with pytest.raises(ValueError, match=message):
        model()([[5, 17]], [[6, 8, 9]], labels=labels)
