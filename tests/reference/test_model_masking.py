"""What moves what: rows of a batch, padding, windows, causality, the cross half."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import U64, Array, close, frozen, generator
from small_inputs import BOS, FULL, PAD, SLIDING, Factory, image_ids, near, one_layer, pictures, tokens

from t5g2ref.config import Config
from t5g2ref.trace import recorder


def moved(a: Array, b: Array) -> list[int]:
    """Rows t of (1, T, D) in which the two differ in any bit."""
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return np.flatnonzero((a[0] != b[0]).any(axis=-1)).tolist()


# Batch and padding


def test_a_row_alone_is_the_row_of_a_batch(model: Factory) -> None:
    ids, decoder_ids = image_ids(), tokens("b", 2, 7)
    pixels, net = pictures("p", 3), model()
    both = net(ids, decoder_ids, pixel_values=pixels)
    for row, images in ((0, slice(0, 2)), (1, slice(2, 3))):
        alone = net(ids[row : row + 1], decoder_ids[row : row + 1], pixel_values=pixels[images])
        near(alone.logits[0], both.logits[row])
        near(alone.encoded.hidden[0], both.encoded.hidden[row])


@pytest.mark.parametrize(("left", "right"), [(0, 5), (4, 0), (9, 3)])
def test_padding_changes_nothing_when_positions_are_given(model: Factory, left: int, right: int) -> None:
    # Pad ids of every kind, in both stacks; the valid rows see each other and nothing else. Left padding of 9 is longer
    # than both windows, so that whole windows of pads occur (D41).
    net = model()
    ids, decoder_ids = tokens("a", 2, 11), tokens("b", 2, 8)

    def padded(given: Array, name: str) -> tuple[Array, Array, Array]:
        whole = generator(name).integers(7, 300, (2, left + given.shape[1] + right))
        inside = slice(left, left + given.shape[1])
        whole[:, inside] = given
        mask, positions = np.zeros(whole.shape, np.int64), np.zeros(whole.shape, np.int64)
        mask[:, inside] = 1
        positions[:, inside] = np.arange(given.shape[1])
        return frozen(whole), frozen(mask), frozen(positions)

    a, a_mask, a_positions = padded(ids, "pads a")
    b, b_mask, b_positions = padded(decoder_ids, "pads b")
    expected = net(ids, decoder_ids)
    found = net(
        a,
        b,
        attention_mask=a_mask,
        position_ids=a_positions,
        decoder_attention_mask=b_mask,
        decoder_position_ids=b_positions,
    )
    near(found.encoded.hidden[a_mask == 1].reshape(expected.encoded.hidden.shape), expected.encoded.hidden)
    near(found.logits[b_mask == 1].reshape(expected.logits.shape), expected.logits)
    assert np.isfinite(found.logits).all()
    assert np.isfinite(found.encoded.hidden).all()


def test_without_positions_padding_does_not_shift_them(model: Factory) -> None:
    # D29. In the decoder that is felt, since cross keys carry no RoPE: left padding is another result,
    # and the one that positions 3, 4, … give. Right padding is none.
    net, ids, decoder_ids = model(), tokens("a", 1, 6), tokens("b", 1, 5)
    plain = net(ids, decoder_ids).logits
    left = frozen(np.concatenate([np.full((1, 3), PAD), decoder_ids], axis=1))
    mask = frozen([[0, 0, 0, 1, 1, 1, 1, 1]])
    padded = net(ids, left, decoder_attention_mask=mask).logits[:, 3:]
    near(padded, net(ids, decoder_ids, decoder_position_ids=frozen([[3, 4, 5, 6, 7]])).logits)
    assert np.abs(padded - plain).max() > 1e-3 * np.abs(plain).max()
    right = frozen(np.concatenate([decoder_ids, np.full((1, 3), PAD)], axis=1))
    near(net(ids, right, decoder_attention_mask=frozen(mask[:, ::-1])).logits[:, :5], plain)


def test_left_padding_in_the_encoder_is_felt_in_the_angles_alone(model: Factory) -> None:
    # All of the encoder's RoPE is relative, so a shift cancels in its result; what shows the position is the table.
    net, ids = model(), tokens("a", 1, 6)
    padded = frozen(np.concatenate([np.full((1, 4), PAD), ids], axis=1))
    mask = frozen([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    found = net.encode(padded, mask, trace=recorder(seen := {}))
    near(found.hidden[:, 4:], net.encode(ids).hidden)
    cos = seen["encoder.text_model.rotary_emb.sliding_attention.cos"]
    close(cos[0, 4:, 0], np.cos(np.arange(4.0, 10.0)), atol=8 * U64 * 10)  # plane 0 turns by the position itself


# What moves what


@pytest.mark.parametrize("window", [1, 2, 3, 6, 7])
def test_a_sliding_encoder_layer_spreads_a_token_over_its_window(model: Factory, config: Config, window: int) -> None:
    # Seen from the key at 8, by the definition: query q moves where 0 ≤ q − 8 < (W + 1) // 2 or 0 < 8 − q < W // 2 + 1.
    net = model(config=one_layer(config, "encoder", SLIDING, window))
    ids = np.array(tokens("probe", 1, 17))
    other = ids.copy()
    other[0, 8] += 1
    expected = [q for q in range(17) if 0 <= q - 8 < (window + 1) // 2 or 0 < 8 - q < window // 2 + 1]
    assert len(expected) == window
    assert moved(net.encode(ids).hidden, net.encode(other).hidden) == expected


def test_a_full_encoder_layer_spreads_a_token_everywhere(model: Factory, config: Config) -> None:
    # Bidirectional, with and without a mask: transformers once was causal on the unpadded path alone (#42820, D35).
    net = model(config=one_layer(config, "encoder", FULL))
    ids = np.array(tokens("probe", 1, 17))
    for at in (0, 8, 16):
        other = ids.copy()
        other[0, at] += 1
        for mask in (None, frozen(np.ones((1, 17), int))):
            assert moved(net.encode(ids, mask).hidden, net.encode(other, mask).hidden) == list(range(17))


@pytest.mark.parametrize("at", [0, 5, 13])
def test_the_decoder_is_causal(model: Factory, at: int) -> None:
    # Changing token t moves row t and all later rows (full layers carry it on), and not one bit before.
    net = model()
    cache = net.start(net.encode(tokens("source", 1, 6)))
    ids = np.array(tokens("target", 1, 14))
    other = ids.copy()
    other[0, at] += 1
    assert moved(net.decode(ids, cache)[0], net.decode(other, cache)[0]) == list(range(at, 14))


@pytest.mark.parametrize("window", [1, 5, 6])
def test_a_sliding_decoder_layer_looks_back_one_window(model: Factory, config: Config, window: int) -> None:
    net = model(config=one_layer(config, "decoder", SLIDING, window))
    cache = net.start(net.encode(tokens("source", 1, 6)))
    ids = np.array(tokens("target", 1, 14))
    other = ids.copy()
    other[0, 3] += 1
    assert moved(net.decode(ids, cache)[0], net.decode(other, cache)[0]) == list(range(3, 3 + window))


def test_no_window_lies_over_the_cross_half(model: Factory, config: Config) -> None:
    # D36, D37: every decoder row of a single sliding layer feels every encoder position that is not padding, and no
    # other; 20 positions under a window of 6.
    net = model(config=one_layer(config, "decoder", SLIDING))
    mask = np.ones((1, 20), int)
    mask[0, [4, 5, 19]] = 0
    encoded = net.encode(tokens("source", 1, 20), frozen(mask))
    ids = tokens("target", 1, 9)
    plain = net.decode(ids, net.start(encoded))[0]
    for at in range(20):
        hidden = encoded.hidden.copy()
        hidden[0, at] += 1.0
        other = net.decode(ids, net.start(replace(encoded, hidden=frozen(hidden))))[0]
        assert moved(plain, other) == (list(range(9)) if mask[0, at] else [])


def test_cross_keys_have_no_position(model: Factory) -> None:
    # D24: the encoder's output in another order, with its mask, is the same memory.
    net, ids = model(), tokens("target", 2, 9)
    encoded = net.encode(tokens("source", 2, 12), frozen(generator("mask").random((2, 12)) > 0.3))
    order = generator("order").permutation(12)
    shuffled = replace(encoded, hidden=frozen(encoded.hidden[:, order]), valid=frozen(encoded.valid[:, order]))
    near(net.decode(ids, net.start(shuffled))[0], net.decode(ids, net.start(encoded))[0])


def test_queries_are_rotated_for_the_cross_half_too(model: Factory) -> None:
    # D25: with one decoder token the own half is one key at distance 0, and only the cross half can feel the position.
    net = model()
    cache, ids = net.start(net.encode(tokens("source", 1, 6))), frozen([[BOS]])
    a, b = (net.decode(ids, cache, None, frozen([[p]]))[0] for p in (0, 9))
    assert np.abs(a - b).max() > 1e-3
