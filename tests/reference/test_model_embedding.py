"""Rows of the table as both stacks embed them, and image features in their places."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import Array, frozen, same_bits
from small_inputs import BOI, BOS, EOI, IMAGE, PAD, Factory, image_ids, near, pictures, steps, tokens

from t5g2ref import params
from t5g2ref.embedding import embed
from t5g2ref.numerics import Numerics
from t5g2ref.trace import recorder


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_end_of_image_row_is_not_scaled_and_is_for_both_stacks(
    model: Factory, weights: dict[str, Array], dtype: str
) -> None:
    # D01 – D05. The other special ids have ordinary rows, the image id too, which only the decoder takes without image.
    net, name = model(dtype), "encoder.text_model.embed_tokens"
    table, eoi = weights[f"{name}.weight"], weights[f"{name}.eoi_embedding"]
    scale = {"float64": math.sqrt(48), "float32": np.float32(math.sqrt(48)), "bfloat16": np.float32(6.9375)}[dtype]
    source, target = frozen([[BOS, 50, EOI, BOI, 51, PAD, EOI]]), frozen([[BOS, 50, EOI, BOI, IMAGE, PAD, EOI]])
    net(source, target, trace=recorder(seen := {}))
    for tap, ids in ((name, source), ("decoder.embed_tokens", target)):
        expected = net.nx.cast(table[ids].astype(net.nx.storage) * scale)  # √48 = 6.928…, in bfloat16 6.9375
        expected[ids == EOI] = eoi
        same_bits(seen[tap], expected)


def test_image_tokens_without_an_image_are_refused(model: Factory) -> None:
    """Their rows of the table are never trained; a forgotten picture must not pass for one."""
    ids = frozen([[BOS, 50, 51], [BOS, IMAGE, 51]])
    with pytest.raises(ValueError, match=f"input_ids hold image tokens \\(id {IMAGE}\\) but there are no pixel_values"):
        model().encode(ids)
    with pytest.raises(ValueError, match="there are no pixel_values"):
        model()(ids, frozen([[BOS], [BOS]]))


def test_the_end_of_image_row_in_a_cached_step(model: Factory) -> None:
    net, ids = model(), frozen([[BOS, 50, EOI, 51]])
    cache = net.start(net.encode(tokens("a", 1, 5)))
    near(steps(net, cache, ids, np.ones((1, 4), int), [1, 2, 3])[0], net.decode(ids, cache)[0])


def test_embedding_scale_follows_embed_dtype(model: Factory, weights: dict[str, Array]) -> None:
    # The float64 truth of a bfloat16 peer multiplies by the bfloat16 root, and rounds nothing else.
    nx = Numerics("float64", embed_dtype="bfloat16")
    table = params.tree(weights).encoder.text_model.embed_tokens
    same_bits(embed(nx, table, frozen([[50]]), EOI)[0, 0], table.weight[50].astype("float64") * 6.9375)


def test_image_features_take_the_image_rows_in_reading_order(model: Factory, weights: dict[str, Array]) -> None:
    # D04, D61: three images over two rows, 48 slots row by row; unscaled; every other row is the text's.
    net, ids, name = model(), image_ids(), "encoder.text_model.embed_tokens"
    net.encode(ids, pixel_values=pictures("p", 3), trace=recorder(seen := {}))
    features = seen["encoder.multi_modal_projector.projected"]
    assert features.shape == (3, 16, 48)
    expected = weights[f"{name}.weight"][ids].astype("float64") * math.sqrt(48)
    expected[ids == EOI] = weights[f"{name}.eoi_embedding"]
    same_bits(seen[name], expected)
    slots = [(row, column) for row in range(2) for column in range(ids.shape[1]) if ids[row, column] == IMAGE]
    for (row, column), (image, token) in zip(slots, np.ndindex(3, 16), strict=True):
        expected[row, column] = features[image, token]
    same_bits(seen["encoder.text_model.inputs_embeds"], expected)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_images_must_match_their_tokens(model: Factory, count: int) -> None:
    message = rf"48 image tokens \(id 302\).*{16 * count} feature rows \({count} images of 16\)"
    with pytest.raises(ValueError, match=message):
        model().encode(image_ids(), pixel_values=pictures("p", count))


def test_images_without_a_place_are_refused(model: Factory) -> None:
    with pytest.raises(ValueError, match=r"0 image tokens .* 16 feature rows"):
        model().encode(tokens("a", 1, 5), pixel_values=pictures("p", 1))
