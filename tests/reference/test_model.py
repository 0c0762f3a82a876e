"""The whole model: against a naive one, its logits, its precision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from geometry import seeded_weights
from helpers import U32, Array, frozen, generator, on_grid, same_bits
from one_page_model import Naive
from small_inputs import BOTH, Factory, image_ids, near, pictures, ragged, tokens

from t5g2ref.config import Config
from t5g2ref.numerics import EAGER, SDPA, Numerics
from t5g2ref.trace import recorder


def check_naive(config: Config, given: dict[str, Any], model: Factory) -> None:
    """Valid rows of hidden states and logits; `given` is keyword arguments of the model."""
    net, naive = model(config=config), Naive(config, seeded_weights(config))
    ids, decoder_ids = given["input_ids"], given["decoder_input_ids"]
    mask = given.get("attention_mask", np.ones(ids.shape, int))
    decoder_mask = given.get("decoder_attention_mask", np.ones(decoder_ids.shape, int))
    positions = given.get("position_ids", np.arange(ids.shape[1])[None])
    decoder_positions = given.get("decoder_position_ids", np.arange(decoder_ids.shape[1])[None])
    encoded = naive.encode(ids, mask, positions, given.get("pixel_values"))
    hidden = naive.decode(decoder_ids, decoder_mask, decoder_positions, encoded, mask)
    out = net(**given)
    near(out.encoded.hidden[mask == 1], encoded[mask == 1])
    keep = decoder_mask == 1
    near(out.logits[keep], naive.logits(hidden)[keep])


def test_text(model: Factory, config: Config) -> None:
    # Past both windows in both stacks. Broken by norms exchanged (D14), missing (D09, D15, D16) or after RoPE (D17), by
    # gate and up exchanged (D53), the scale from head_dim (D46), RoPE on cross keys (D24).
    check_naive(config, {"input_ids": tokens("a", 2, 17), "decoder_input_ids": tokens("b", 2, 14)}, model)


@pytest.mark.parametrize("side", ["left", "right", "inside"])
def test_padding(model: Factory, config: Config, side: str) -> None:
    given = {"input_ids": tokens("a", 3, 16), "decoder_input_ids": tokens("b", 3, 12)}
    for name, ids in (("attention_mask", "input_ids"), ("decoder_attention_mask", "decoder_input_ids")):
        given[name] = ragged(given[ids].shape, side)
    check_naive(config, given, model)


def test_given_positions(model: Factory, config: Config) -> None:
    given = {"input_ids": tokens("a", 2, 9), "decoder_input_ids": tokens("b", 2, 8)}
    given["position_ids"] = frozen(generator("positions").integers(0, 250, (2, 9)))
    given["decoder_position_ids"] = frozen(np.arange(180, 188)[None])
    check_naive(config, given, model)


def test_images(model: Factory, config: Config) -> None:
    # Broken by a transposed patch grid or projection (D59), missing biases, position embedding or post-norm (D62), the
    # projector's norm (D60), scaled features (D04).
    given = {"input_ids": image_ids(), "decoder_input_ids": tokens("b", 2, 4), "pixel_values": pictures("p", 3)}
    check_naive(config, given, model)


def test_pixels_left_over_at_the_edge_are_dropped(model: Factory, config: Config) -> None:
    # A 35-pixel image has eight whole patches of 4: a "valid" convolution.
    wider = replace(config, vision=replace(config.vision, image_size=35))
    pixels = frozen(generator("wide").uniform(-1, 1, (3, 3, 35, 35)))
    given = {"input_ids": image_ids(), "decoder_input_ids": tokens("b", 2, 4), "pixel_values": pixels}
    check_naive(wider, given, model)


def test_attention_softcap_is_applied_where_set(model: Factory, config: Config) -> None:
    # D49; one stack each, and no cap on the logits (D50).
    capped = replace(
        config,
        encoder=replace(config.encoder, attn_logit_softcapping=0.8),
        decoder=replace(config.decoder, attn_logit_softcapping=1.5, final_logit_softcapping=None),
    )
    given = {"input_ids": tokens("a", 1, 9), "decoder_input_ids": tokens("b", 1, 8)}
    check_naive(capped, given, model)
    assert not np.allclose(model(config=capped)(**given).encoded.hidden, model()(**given).encoded.hidden, rtol=1e-3)


# Logits


def test_logits_are_products_with_the_table(model: Factory, weights: dict[str, Array]) -> None:
    # D07: the tied table, unscaled; then the decoder's cap of 30 (D50).
    net = model()
    out = net(tokens("a", 1, 6), tokens("b", 1, 5), trace=recorder(seen := {}))
    table = weights["encoder.text_model.embed_tokens.weight"].astype("float64")
    bare = np.array([[[math.fsum(h * w) for w in table] for h in row] for row in seen["decoder.norm"]])
    near(seen["lm_head"], bare)
    near(out.logits, 30 * np.tanh(bare / 30))
    assert (np.abs(out.logits) < 30).all()
    assert np.abs(bare).max() > 8, "the cap would hardly be felt"


# Precision


def distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a.astype("float64") - b) / np.linalg.norm(b))


@pytest.mark.parametrize("profile", [SDPA, EAGER], ids=lambda p: p.name)
def test_float32_is_float32_away_from_the_oracle(model: Factory, profile: Any) -> None:
    # u = 6e-8; eleven layers of a dozen roundings that add like a random walk are some u; found is 5. A float64 island
    # would not be seen, one in half precision (2e-3) would; below u it would not be float32 at all.
    truth = model()(**BOTH).logits
    found = model(numerics=Numerics("float32", profile))(**BOTH).logits
    assert found.dtype == np.float32
    assert U32 < distance(found, truth) < 50 * U32


@pytest.mark.parametrize("profile", [SDPA, EAGER], ids=lambda p: p.name)
@pytest.mark.parametrize(("dtype", "u"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_half_types_stay_on_their_grid_at_every_tap(model: Factory, dtype: Any, u: float, profile: Any) -> None:
    # Every activation is a value of the type, or a rounding point was left out; the result is some u away, found is 2.
    truth = model()(**BOTH).logits
    found = model(numerics=Numerics(dtype, profile))(**BOTH, trace=recorder(seen := {})).logits
    for name, value in seen.items():
        if not name.endswith(".mask"):
            assert value.dtype == np.float32, name
            assert on_grid(value, dtype), name
    assert u / 4 < distance(found, truth) < 20 * u


def test_same_weights_under_other_numerics(model: Factory) -> None:
    net = model()
    other = net.with_numerics(Numerics("float32"))
    assert (other.weights, other.config) == (net.weights, net.config)
    same_bits(other(**BOTH).logits, model("float32")(**BOTH).logits)
