"""The whole model: against a naive one, cache against no cache, what moves what, the door, and the taps.

NOISE: two float64 runs that differ in the order of sums alone (another split, batch or layout) differ by u = 1.1e-16 an
operation, which eleven layers of norms and products magnify; 1e-12 of the largest value is 10⁴ u, found is 1e-15. A
defect of the catalogue moves 1e-3 and more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import seeded_weights
from helpers import U32, U64, Array, close, frozen, generator, on_grid, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from one_page_model import Naive

import t5g2ref.attention as attention_module
from t5g2ref import params, taps
from t5g2ref.cache import Cache
from t5g2ref.config import Config, TextConfig
from t5g2ref.embedding import embed
from t5g2ref.model import Output, T5Gemma2
from t5g2ref.numerics import EAGER, SDPA, Numerics
from t5g2ref.taps import Tap
from t5g2ref.trace import OFF, Trace, recorder

Factory = Callable[..., T5Gemma2]
NOISE = 1e-12
SLIDING, FULL = "sliding_attention", "full_attention"
PAD, BOS, BOI, EOI, IMAGE = 3, 6, 300, 301, 302


def tokens(name: str, batch: int, length: int) -> Array:
    """Ordinary ids behind a bos: none of them special."""
    ids = generator(name).integers(7, 300, (batch, length))
    ids[:, 0] = BOS
    return frozen(ids)


def pictures(name: str, count: int) -> Array:
    """Pixels without any symmetry, float32 in [−1, 1]."""
    return frozen(generator(name).uniform(-1, 1, (count, 3, 32, 32)), "float32")


def near(actual: Any, expected: Any) -> None:
    """Equal up to NOISE; see above."""
    close(actual, expected, atol=NOISE * float(np.abs(expected).max()))


def moved(a: Array, b: Array) -> list[int]:
    """Rows t of (1, T, D) in which the two differ in any bit."""
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return np.flatnonzero((a[0] != b[0]).any(axis=-1)).tolist()


def one_layer(config: Config, stack: str, kind: str, window: int | None = None) -> Config:
    """The same geometry with a single layer in one stack."""
    text: TextConfig = getattr(config, stack)
    text = replace(text, num_hidden_layers=1, layer_types=(kind,), sliding_window=window or text.sliding_window)
    return replace(config, **{stack: text})


# Against the naive model


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


def ragged(shape: tuple[int, ...], side: str) -> Array:
    """A mask (B, T): row b lacks 4 b positions on one side, or every third one."""
    mask = np.ones(shape, np.int64)
    for row in range(1, shape[0]):
        where = {"left": slice(0, 4 * row), "right": slice(shape[1] - 4 * row, None), "inside": slice(row, None, 3)}[
            side
        ]
        mask[row, where] = 0
    return frozen(mask)


def test_given_positions(model: Factory, config: Config) -> None:
    given = {"input_ids": tokens("a", 2, 9), "decoder_input_ids": tokens("b", 2, 8)}
    given["position_ids"] = frozen(generator("positions").integers(0, 250, (2, 9)))
    given["decoder_position_ids"] = frozen(np.arange(180, 188)[None])
    check_naive(config, given, model)


def image_ids() -> Array:
    """Two rows, three images: two in the first, one in the second, all M = 16 tokens long, with boi and eoi."""
    block = [BOI, *[IMAGE] * 16, EOI]
    return frozen([[BOS, 9, *block, 11, *block, 12], [BOS, 21, 22, *block, *range(23, 42)]])


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
    # FACTS, Text 10 (D49); one stack each, and no cap on the logits (D50).
    capped = replace(
        config,
        encoder=replace(config.encoder, attn_logit_softcapping=0.8),
        decoder=replace(config.decoder, attn_logit_softcapping=1.5, final_logit_softcapping=None),
    )
    given = {"input_ids": tokens("a", 1, 9), "decoder_input_ids": tokens("b", 1, 8)}
    check_naive(capped, given, model)
    assert not np.allclose(model(config=capped)(**given).encoded.hidden, model()(**given).encoded.hidden, rtol=1e-3)


# Cache


@pytest.fixture(scope="module")
def cached(model: Factory) -> tuple[T5Gemma2, Cache, Array, Array, Array]:
    """A model, an empty cache over 20 encoder positions (beyond both windows), decoder ids (2, 15) with some padding,
    their mask, and the hidden states of one call with all of them."""
    net = model()
    cache = net.start(net.encode(tokens("source", 2, 20), frozen(generator("source mask").random((2, 20)) > 0.2)))
    ids, mask = tokens("target", 2, 15), np.ones((2, 15), np.int64)
    mask[0, [3, 4, 11]] = mask[1, :2] = 0
    mask = frozen(mask)
    return net, cache, ids, mask, net.decode(ids, cache, mask)[0]


def steps(net: T5Gemma2, cache: Cache, ids: Array, mask: Array, cuts: list[int]) -> tuple[Array, Cache]:
    parts = []
    for first, last in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        hidden, cache = net.decode(ids[:, first:last], cache, mask[:, first:last])
        parts.append(hidden)
    return np.concatenate(parts, axis=1), cache


@given(cuts=st.sets(st.integers(1, 14)).map(sorted))
@settings(max_examples=25)
def test_any_split_gives_the_numbers_of_one_call(cached: Any, cuts: list[int]) -> None:
    # D28, D36, D54, D56, D57: positions, windows, validity and the cross half go on from the cache.
    net, cache, ids, mask, whole = cached
    found, after = steps(net, cache, ids, mask, cuts)
    near(found, whole)
    once = net.decode(ids, cache, mask)[1]
    assert after.length == once.length == 15
    same_bits(after.valid, mask.astype(bool))
    for kv, other in zip(after.own, once.own, strict=True):
        assert (kv.start, kv.length) == (other.start, other.length)
        near(kv.keys, other.keys)
        near(kv.values, other.values)


def test_one_position_a_call(cached: Any) -> None:
    net, cache, ids, mask, whole = cached
    near(steps(net, cache, ids, mask, list(range(1, 15)))[0], whole)


@pytest.mark.parametrize("window", [1, 2, 6])
def test_a_sliding_cache_holds_what_the_next_position_can_see(model: Factory, config: Config, window: int) -> None:
    # min(length, W − 1) positions, the last ones; a full layer keeps all. W = 1 keeps none and must still run.
    net = model(config=replace(config, decoder=replace(config.decoder, sliding_window=window)))
    cache = net.start(net.encode(tokens("source", 1, 5)))
    ids = tokens("target", 1, 9)
    whole = net.decode(ids, cache)[0]
    lengths = [1, 3, 1, 4]
    done = 0
    for n in lengths:
        hidden, cache = net.decode(ids[:, done : done + n], cache)
        near(hidden, whole[:, done : done + n])
        done += n
        for kv, kind in zip(cache.own, config.decoder.layer_types, strict=True):
            expected = min(done, window - 1) if kind == SLIDING else done
            assert (kv.length, kv.start) == (expected, done - expected)
            assert kv.keys.shape == kv.values.shape == (1, 2, expected, 10)


def test_the_cross_half_is_kept_whole_and_projected_once(cached: Any) -> None:
    # D36: 20 encoder positions under windows of 7 and 6, before and after decoding.
    net, cache, ids, mask, _ = cached
    after = steps(net, cache, ids, mask, [2, 9])[1]
    for before, kv in zip(cache.cross, after.cross, strict=True):
        assert kv is before
        assert (kv.length, kv.start) == (20, 0)
    same_bits(after.cross_valid, cache.cross_valid)


def test_decoding_does_not_change_the_cache_it_was_given(cached: Any) -> None:
    # An explicit value: the same cache may be continued twice, as a beam search and a comparison do.
    net, empty, ids, mask, _ = cached
    _, cache = net.decode(ids[:, :9], empty, mask[:, :9])
    arrays = [cache.valid, cache.cross_valid, *(a for kv in (*cache.own, *cache.cross) for a in (kv.keys, kv.values))]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    first, later = net.decode(ids[:, 9:], cache, mask[:, 9:])
    other, _ = net.decode(tokens("another", 2, 3), cache)
    again, _ = net.decode(ids[:, 9:], cache, mask[:, 9:])
    same_bits(again, first)
    assert (other != first[:, :3]).any()
    assert (cache.length, later.length) == (9, 15)
    for a, b in zip(arrays, before, strict=True):
        same_bits(a, b)


def test_reordered_rows_go_on_as_if_they_had_been_there(cached: Any) -> None:
    # D55: both halves, validity included. Row 1 twice and row 0, as beams are.
    net, empty, ids, mask, _ = cached
    _, cache = net.decode(ids[:, :8], empty, mask[:, :8])
    rows = frozen([1, 0, 1])
    moved_cache = cache.reordered(rows)
    assert (moved_cache.batch, moved_cache.length) == (3, 8)
    found, _ = net.decode(ids[rows, 8:], moved_cache, mask[rows, 8:])
    expected, _ = net.decode(ids[:, 8:], cache, mask[:, 8:])
    near(found, expected[rows])


def test_a_second_source_starts_afresh(model: Factory) -> None:
    # D55: nothing of the first source is left anywhere.
    net, ids = model(), tokens("target", 1, 4)
    fresh = model()(tokens("second", 1, 9), ids).logits
    net(tokens("first", 1, 12), ids)
    same_bits(net(tokens("second", 1, 9), ids).logits, fresh)


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
    # FACTS, Text 6 (D29). In the decoder that is felt, since cross keys carry no RoPE: left padding is another result,
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
    # FACTS, Text 7, seen from the key at 8: query q moves where 0 ≤ q − 8 < (W + 1) // 2 or 0 < 8 − q < W // 2 + 1.
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


# Embedding


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

BOTH = {"input_ids": image_ids(), "decoder_input_ids": tokens("b", 2, 12), "pixel_values": pictures("p", 3)}


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


# The door

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


# Taps


def extents(config: Config, tap: Tap, sizes: dict[str, int]) -> dict[str, int]:
    """What each letter of the package's legend is at this tap: widths go by the stack, S by what the keys are of."""
    part = tap.name.split(".layers.")[-1]
    if tap.module.startswith(("encoder.vision_tower", "encoder.multi_modal_projector")):
        v = config.vision
        width = config.encoder.hidden_size if part.endswith("projected") else v.hidden_size
        return {"I": sizes["images"], "P": v.patches_per_side**2, "M": 16, "D": width, "F": v.intermediate_size}
    stack = config.encoder if tap.module.startswith("encoder") else config.decoder
    source, own = sizes["source"], sizes["own"]
    if stack is config.encoder:
        queries, keys = source, source
    else:
        queries = sizes["new"]
        keys = source if ".cross_" in part else own + source if part.endswith("mask") else own
    return {
        "B": sizes["batch"],
        "T": queries,
        "S": keys,
        "D": stack.hidden_size,
        "F": stack.intermediate_size,
        "H": stack.head_dim,
        "N": stack.num_attention_heads,
        "K": stack.num_key_value_heads,
        "V": stack.vocab_size,
        "C": config.num_labels,
    }


def check_shapes(config: Config, table: list[Tap], seen: dict[str, Any], **sizes: int) -> None:
    assert len({tap.name for tap in table}) == len(table)
    assert set(seen) == {tap.name for tap in table}, set(seen) ^ {tap.name for tap in table}
    for tap in table:
        letters = extents(config, tap, sizes)
        expected = tuple(math.prod(letters[x] for x in axis.split("*")) for axis in tap.shape.split())
        assert np.shape(seen[tap.name]) == expected, f"{tap.name}: {tap.shape}"
        assert tap.exact == (np.asarray(seen[tap.name]).dtype == bool), tap.name


CALLS: dict[str, Callable[[T5Gemma2, dict[str, Any], Any, Trace], Output]] = {
    "lm": lambda net, given, labels, trace: net(**given, labels=labels, trace=trace),
    "sequence": lambda net, given, labels, trace: net.classify(**given, labels=labels, trace=trace),
    "token": lambda net, given, labels, trace: net.classify(**given, per_token=True, labels=labels, trace=trace),
}
LABELS = {
    "lm": frozen(generator("labels").integers(0, 300, (2, 12))),
    "sequence": frozen([4, 0]),
    "token": frozen(generator("labels").integers(0, 5, (2, 12))),
}


@pytest.mark.parametrize("loss", [True, False], ids=["loss", "no loss"])
@pytest.mark.parametrize("images", [True, False], ids=["images", "text"])
@pytest.mark.parametrize("task", list(CALLS))
def test_a_call_visits_the_tables_taps_and_no_others(
    model: Factory, config: Config, task: str, images: bool, loss: bool
) -> None:
    # The table is documentation, name map and plan of the conformance suite at once: a tap that is missing, extra or of
    # another shape is an error in one of the two. Letters of one size in two roles would hide that: none are here.
    given = dict(BOTH)
    if not images:  # words in place of the image tokens, which are refused without an image
        ids = given["input_ids"]
        given |= {"input_ids": frozen(np.where(ids == IMAGE, 50, ids))}
        del given["pixel_values"]
    out = CALLS[task](model(), given, LABELS[task] if loss else None, recorder(seen := {}))
    table = taps.table(config, images=images, task=task, loss=loss)
    check_shapes(config, table, seen, batch=2, images=3, source=image_ids().shape[1], new=12, own=12)
    assert seen["logits"] is out.logits
    assert seen.get("loss") is out.loss


@pytest.mark.parametrize("task", list(CALLS))
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_tracing_does_not_change_a_bit(model: Factory, task: str, dtype: str) -> None:
    net = model(dtype)
    quiet, heard = (CALLS[task](net, BOTH, LABELS[task], trace) for trace in (OFF, recorder({})))
    same_bits(heard.logits, quiet.logits)
    same_bits(heard.loss, quiet.loss)
    same_bits(heard.encoded.hidden, quiet.encoded.hidden)


def test_a_cached_step_visits_what_is_not_of_the_first_call(model: Factory, config: Config) -> None:
    # Own keys are those still held, all 8 or the last W − 1 = 5 of them, and the two new ones.
    net = model()
    cache = net.start(net.encode(tokens("a", 2, 9)))
    _, cache = net.decode(tokens("b", 2, 8), cache)
    hidden, _ = net.decode(tokens("c", 2, 2), cache, trace=(trace := recorder(seen := {})))
    net.logits(hidden, trace)
    table = [tap for tap in taps.table(config, images=False) if not tap.first_call]
    for kind, own in ((SLIDING, 5 + 2), (FULL, 8 + 2)):
        layers = [f"decoder.layers.{i}" for i, other in enumerate(config.decoder.layer_types) if other == kind]
        part = [tap for tap in table if tap.name.startswith(tuple(f"{at}." for at in layers)) or tap.name in layers]
        found = {tap.name: seen.pop(tap.name) for tap in part}
        check_shapes(config, part, found, batch=2, images=0, source=9, new=2, own=own)
        table = [tap for tap in table if tap not in part]
    check_shapes(config, table, seen, batch=2, images=0, source=9, new=2, own=-1)


def test_values_come_in_the_tables_order(model: Factory, config: Config) -> None:
    # "The first bad one is the culprit." Cross keys and values alone are made earlier than their layer: at the start.
    model()(**BOTH, trace=recorder(seen := {}))
    early = re.compile(r"decoder\.layers\.\d+\.self_attn\.cross_(k_proj|v_proj|k_norm)$")
    order = [tap.name for tap in taps.table(config)]
    assert [name for name in seen if not early.match(name)] == [name for name in order if not early.match(name)]
    assert [name for name in seen if early.match(name)] == [name for name in order if early.match(name)]


def test_every_tap_is_live(model: Factory, config: Config) -> None:
    # What a sink returns is what the model goes on with, or restarting from a peer's activations would compare nothing.
    # Masks are made for the listener alone. One layer each keeps this to two hundred short calls.
    small = one_layer(one_layer(config, "encoder", SLIDING), "decoder", FULL)
    small = replace(small, vision=replace(small.vision, num_hidden_layers=1))
    net, table = model(config=small), taps.table(small, loss=True)
    given = {
        "input_ids": frozen([[BOS, BOI, *[IMAGE] * 16, EOI]]),
        "pixel_values": pictures("p", 1),
        "decoder_input_ids": tokens("b", 1, 3),
        "labels": frozen([[1, 2, 3]]),
    }
    quiet = net(**given)
    assert quiet.loss is not None
    for tap in table:
        if tap.exact:
            continue

        def nudge(name: str, value: Any, wanted: str = tap.name) -> Any:
            # Not the same for every key: a softmax would not feel that.
            return (
                value + 0.1 * np.sin(1.0 + np.arange(np.size(value))).reshape(np.shape(value))
                if name == wanted
                else value
            )

        out = net(**given, trace=Trace(nudge))
        assert out.loss is not None
        assert np.isfinite(out.loss)
        assert abs(out.loss - quiet.loss) > 1e-9, f"{tap.name} is heard but not listened to"


def test_without_a_listener_no_dense_mask_is_made(model: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Array:
        raise AssertionError("a dense mask was made")

    monkeypatch.setattr(attention_module, "dense_mask", refuse)
    model()(**BOTH)
    with pytest.raises(AssertionError, match="a dense mask was made"):
        model()(**BOTH, trace=recorder({}))


def test_recorded_masks_are_the_rules(model: Factory, config: Config) -> None:
    # The exact lane compares these: band and padding over own keys, then the encoder's padding over cross keys.
    mask, decoder_mask = ragged((2, 13), "left"), ragged((2, 9), "right")
    model()(
        tokens("a", 2, 13),
        tokens("b", 2, 9),
        attention_mask=mask,
        decoder_attention_mask=decoder_mask,
        trace=recorder(seen := {}),
    )
    q, k = np.mgrid[:13, :13]
    near_by = (q >= k) & (q - k < 4) | (k > q) & (k - q < 4)  # W = 7: three on each side
    own_q, own_k = np.mgrid[:9, :9]
    cross = np.broadcast_to(mask[:, None] == 1, (2, 9, 13))
    for i, kind in enumerate(config.encoder.layer_types):
        expected = (mask[:, None] == 1) & (near_by if kind == SLIDING else True)
        same_bits(seen[f"encoder.text_model.layers.{i}.self_attn.mask"], np.broadcast_to(expected, (2, 13, 13)))
    for i, kind in enumerate(config.decoder.layer_types):
        own = (own_k <= own_q) & ((own_q - own_k < 6) | (kind == FULL)) & (decoder_mask[:, None] == 1)
        expected = np.concatenate([own, cross], axis=2)
        same_bits(seen[f"decoder.layers.{i}.self_attn.mask"], expected)


def test_a_recorder_refuses_a_second_call() -> None:
    trace = recorder({})
    trace("a", 1)
    with pytest.raises(ValueError, match="tap a was recorded twice"):
        trace("a", 2)


def test_a_trace_further_in_has_the_longer_name() -> None:
    seen: dict[str, Any] = {}
    trace = recorder(seen).at("layers.3").at("mlp")
    assert trace("up_proj", 5) == 5
    trace.lazy("mask", lambda: 6)
    assert seen == {"layers.3.mlp.up_proj": 5, "layers.3.mlp.mask": 6}
    assert OFF.at("layers.3") is OFF
    assert OFF("x", 5) == 5


# Nothing is written in place


def test_no_value_is_written_after_it_was_shown(model: Factory) -> None:
    # A recorded value must stay what it was: every tapped array is made read-only as it passes, in two cached calls.
    def freeze(_: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        return value

    net, trace = model(), Trace(freeze)
    encoded = net.encode(image_ids(), pixel_values=pictures("p", 3), trace=trace)
    _, cache = net.decode(tokens("b", 2, 8), net.start(encoded, trace), trace=trace)
    hidden, _ = net.decode(tokens("c", 2, 2), cache, trace=trace)
    net.logits(hidden, trace)
    for task, call in CALLS.items():
        call(net, BOTH, LABELS[task], trace)


def test_weights_and_inputs_of_these_tests_are_read_only(weights: dict[str, Array]) -> None:
    # A write into any of them would have raised somewhere above; this makes sure that it would.
    assert not any(value.flags.writeable for value in (*weights.values(), *BOTH.values(), *LABELS.values()))


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
