"""Masks and embeddings that the caller gives: against the one-page model, in any split, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from geometry import seeded_weights
from helpers import Array, frozen, generator, same_bits
from one_page_model import Naive
from small_inputs import BOTH, EOI, FULL, IMAGE, SLIDING, Factory, image_ids, near, pictures, tokens
from strict_arrays import StrictBackend

from t5g2ref import params
from t5g2ref.config import Config
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics
from t5g2ref.trace import recorder

SOURCE, TARGET = tokens("a", 2, 17), tokens("b", 2, 14)


def seen(name: str, *shape: int) -> Array:
    """A random mask that leaves every query its own position."""
    mask = generator(name).random(shape) < 0.4
    mask |= np.eye(shape[2], shape[3], shape[3] - shape[2], dtype=bool)
    return frozen(mask)


ENCODER = {FULL: seen("ef", 2, 1, 17, 17), SLIDING: seen("es", 2, 1, 17, 17)}
DECODER = {FULL: seen("df", 2, 1, 14, 14), SLIDING: seen("ds", 2, 1, 14, 14)}
CROSS = seen("c", 2, 1, 14, 17)


# Masks


@pytest.mark.parametrize("block", [None, 5])
def test_masks_in_the_place_of_the_rules(
    model: Factory, config: Config, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past both windows and against causality; in one block of queries and in several."""
    if block:
        monkeypatch.setattr(Numerics, "block", lambda *_: block)
    net, naive, ones = model(), Naive(config, seeded_weights(config)), np.ones((2, 17), int)
    expected = naive.encode(SOURCE, ones, np.arange(17)[None], given={k: m[:, 0] for k, m in ENCODER.items()})
    encoded = net.encode(SOURCE, ENCODER)
    near(encoded.hidden, expected)
    merged = {kind: np.concatenate([mask, CROSS], axis=3)[:, 0] for kind, mask in DECODER.items()}
    hidden = naive.decode(TARGET, np.ones((2, 14), int), np.arange(14)[None], expected, ones, given=merged)
    found = net(SOURCE, TARGET, attention_mask=ENCODER, decoder_attention_mask=DECODER, cross_attention_mask=CROSS)
    near(found.logits, naive.logits(hidden))


def test_the_rules_written_out_are_the_rules(model: Factory) -> None:
    """What `dense_mask` shows of them, given back: the same bits."""
    net, kinds, padding = model(), {FULL: 0, SLIDING: 0}, frozen([[0] * 3 + [1] * 14, [1] * 17])
    plain = net(SOURCE, TARGET, attention_mask=padding, trace=recorder(taps := {}))
    for stack, text in (("encoder.text_model", net.config.encoder), ("decoder", net.config.decoder)):
        kinds = {kind: taps[f"{stack}.layers.{i}.self_attn.mask"] for i, kind in enumerate(text.layer_types)}
        masks = {kind: mask[:, None, :, : mask.shape[1]] for kind, mask in kinds.items()}
        if stack == "decoder":
            own, cross = masks, next(iter(kinds.values()))[:, None, :, 14:]
            found = net.decode(TARGET, net.start(plain.encoded), own, cross_attention_mask=cross)[0]
            near(net.logits(found), plain.logits)
        else:
            encoded = net.encode(SOURCE, masks)
            near(encoded.hidden[padding == 1], plain.encoded.hidden[padding == 1])
            same_bits(encoded.valid, padding == 1)


@pytest.mark.parametrize("cuts", [[3], [1, 2, 3, 9], [13]])
def test_any_split_gives_the_numbers_of_one_call(model: Factory, cuts: list[int]) -> None:
    """Each call's mask is over all keys so far. What a sliding layer has dropped is hidden in the whole, too."""
    net, window = model(), model().config.decoder.sliding_window
    distance = np.arange(14)[:, None] - np.arange(14)
    own = {kind: mask & (distance >= 0) for kind, mask in DECODER.items()}
    own[SLIDING] = own[SLIDING] & (distance < window)
    cache = net.start(net.encode(SOURCE))
    whole, parts = net.decode(TARGET, cache, own, cross_attention_mask=CROSS)[0], []
    for first, last in zip([0, *cuts], [*cuts, 14], strict=True):
        masks = {kind: mask[:, :, first:last, :last] for kind, mask in own.items()}
        cross = CROSS[:, :, first:last]
        hidden, cache = net.decode(TARGET[:, first:last], cache, masks, cross_attention_mask=cross)
        parts.append(hidden)
    near(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize(
    ("dtype", "least"),
    [
        *(("float64", -np.inf), ("float32", -np.inf), ("float64", np.finfo(np.float64).min), ("float16", -65504.0)),
        *(("float32", np.finfo(np.float32).min), ("float32", -1e9), (ml_dtypes.bfloat16, -3e38)),
    ],
)
def test_an_added_mask_means_the_same(model: Factory, dtype: Any, least: float) -> None:
    added = {kind: frozen(np.where(mask, 0.0, least), dtype) for kind, mask in ENCODER.items()}
    same_bits(model().encode(SOURCE, added).hidden, model().encode(SOURCE, ENCODER).hidden)


def test_one_row_for_a_batch_and_one_for_all_queries(model: Factory) -> None:
    net, one = model(), ENCODER[FULL][:1]
    expected = net.encode(SOURCE, np.broadcast_to(one, (2, 1, 17, 17)))
    same_bits(net.encode(SOURCE, one).hidden, expected.hidden)
    keys = np.ones((2, 1, 1, 17), bool)
    keys[0, 0, 0, :5] = False
    expected = net.encode(SOURCE, np.broadcast_to(keys, (2, 1, 17, 17)))
    same_bits(net.encode(SOURCE, keys).hidden, expected.hidden)
    same_bits(net.encode(SOURCE, keys).valid, keys[:, 0, 0])


def test_taps_show_the_given_mask(model: Factory) -> None:
    model()(
        *(SOURCE, TARGET),
        attention_mask=ENCODER,
        decoder_attention_mask=DECODER,
        cross_attention_mask=CROSS,
        trace=recorder(taps := {}),
    )
    for i, kind in enumerate(model().config.encoder.layer_types):
        same_bits(taps[f"encoder.text_model.layers.{i}.self_attn.mask"], ENCODER[kind][:, 0])
    for i, kind in enumerate(model().config.decoder.layer_types):
        expected = np.concatenate([DECODER[kind], CROSS], axis=3)[:, 0]
        same_bits(taps[f"decoder.layers.{i}.self_attn.mask"], expected)


def test_what_nobody_sees_is_padding_to_later_calls(model: Factory) -> None:
    net, mask = model(), np.tri(6, dtype=bool)[None, None].copy()
    mask[..., 2] = False
    cache = net.start(net.encode(SOURCE))
    _, after = net.decode(TARGET[:, :6], cache, mask)
    assert after.valid.tolist() == [[True, True, False, True, True, True]] * 2
    hidden = net.encode(SOURCE, ENCODER[FULL] & (np.arange(17) != 4))
    assert hidden.valid.tolist() == [[k != 4 for k in range(17)]] * 2


def test_on_another_array_library(model: Factory) -> None:
    nx = Numerics(backend=StrictBackend())
    device = T5Gemma2(
        model().config, params.tree({k: nx.array(v) for k, v in seeded_weights(model().config).items()}), nx
    )
    masks = {"attention_mask": ENCODER, "decoder_attention_mask": DECODER[FULL], "cross_attention_mask": CROSS}
    given = {"inputs_embeds": model().embed(SOURCE), "decoder_input_ids": TARGET, **masks}
    near(nx.backend.host(device(**given).logits), model()(**given).logits)


ROW = np.ones((1, 1, 17, 17), bool)
BLANK = np.where(np.arange(17)[:, None] == 5, False, ROW)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (ROW[:, :, :, :16], r"^attention_mask: expected shape \(2 or 1, 1, 17 or 1, 17\): .*; found \(1, 1, 17, 16\)"),
        (ROW[:, :, :4], r"^attention_mask: expected shape .*; found \(1, 1, 4, 17\)"),
        (np.repeat(ROW, 4, axis=1), r"^attention_mask: expected shape .* one for all heads.*; found \(1, 4, 17, 17\)"),
        (np.repeat(ROW, 3, axis=0), r"^attention_mask: expected shape .*; found \(3, 1, 17, 17\)"),
        (ROW[0], r"^attention_mask: expected shape \(2, 17\) as the ids, found \(1, 17, 17\)"),
        (
            ROW.astype(int),
            r"^attention_mask: expected bool, or floats of 0 .* and -65504 or less .*, found dtype int64",
        ),
        (ROW * 1.0, r"^attention_mask: expected bool, or floats .*, found 1$"),
        (ROW * -1.5, r"^attention_mask: expected bool, or floats .*, found -1\.5$"),
        (ROW * -10000.0, r"^attention_mask: expected bool, or floats .*, found -10000$"),
        (ROW * np.nan, r"^attention_mask: expected bool, or floats .*, found nan$"),
        (ROW * np.inf, r"^attention_mask: expected bool, or floats .*, found inf$"),
        ({}, r"^attention_mask: expected a mask for full_attention, sliding_attention, found none$"),
        ({FULL: ROW}, r"^attention_mask: expected a mask for sliding_attention, found full_attention$"),
        ({FULL: ROW, SLIDING: None}, r"^attention_mask\['sliding_attention'\]: expected shape .*; found \(\)"),
        ({FULL: ROW, SLIDING: np.ones((2, 17))}, r"^attention_mask\['sliding_attention'\]: expected shape .*\(2, 17\)"),
        (BLANK, r"^attention_mask: query 5 of row 0 sees no key, and others see it; let it see one, or hide it"),
        ({FULL: ROW, SLIDING: BLANK}, r"^attention_mask: query 5 of row 0 sees no key"),
        (np.zeros((2, 1, 17, 17)) * 1j, r"^attention_mask: expected bool, .*found dtype complex128"),
    ],
)
def test_masks_that_are_refused(model: Factory, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().encode(SOURCE, mask)


def test_masks_of_the_decoder_that_are_refused(model: Factory) -> None:
    net = model()
    cache = net.start(net.encode(SOURCE))
    tri = np.tri(14, dtype=bool)[None, None]
    blank = tri & (np.arange(14) != 0) & (np.arange(14)[:, None] != 5)
    for own, cross, message in (
        (tri[..., :13], None, r"^decoder_attention_mask: expected shape \(2 or 1, 1, 14 or 1, 14\)"),
        (tri, tri, r"^cross_attention_mask: expected shape \(2 or 1, 1, 14 or 1, 17\)"),
        (tri, np.ones((2, 17)), r"^cross_attention_mask: expected 4 axes"),
        (
            blank,
            np.zeros((2, 1, 14, 17), bool),
            r"^decoder_attention_mask: query 0 of row 0 sees no key; let it see one$",
        ),
        # The last query is seen by nobody, and its output is read all the same.
        (tri & (np.arange(14)[:, None] != 13), np.zeros((1, 1, 1, 17), bool), r"query 13 of row 0 sees no key"),
    ):
        with pytest.raises(ValueError, match=message):
            net.decode(TARGET, cache, own, cross_attention_mask=cross)
    net.decode(TARGET, cache, blank)  # that row sees the encoder


def test_a_key_that_a_sliding_layer_has_dropped_cannot_be_seen(model: Factory) -> None:
    net, window = model(), model().config.decoder.sliding_window
    _, cache = net.decode(TARGET[:, :9], net.start(net.encode(SOURCE)))
    mask = np.ones((1, 1, 1, 10), bool)
    start = 9 - (window - 1)
    with pytest.raises(ValueError, match=rf"sees keys before position {start} in sliding_attention layers"):
        net.decode(TARGET[:, 9:10], cache, mask)
    near(
        net.decode(TARGET[:, 9:10], cache, {FULL: mask, SLIDING: mask & (np.arange(10) >= start)})[0],
        net.decode(TARGET[:, 9:10], cache)[0],
    )


# Embeddings


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_embeddings_of_ids_are_the_ids(model: Factory, dtype: str) -> None:
    """Nothing is scaled twice; pictures take the rows that are the image token's, to the bit."""
    net = model(dtype)
    source, target = BOTH["input_ids"], BOTH["decoder_input_ids"].copy()
    target[0, 3] = EOI
    expected = net(source, target, pixel_values=BOTH["pixel_values"])
    given = {"inputs_embeds": net.embed(source), "decoder_inputs_embeds": net.embed(target)}
    found = net(**given, pixel_values=BOTH["pixel_values"], trace=recorder(taps := {}))
    same_bits(found.logits, expected.logits)
    assert "decoder.embed_tokens" not in taps
    assert "encoder.text_model.inputs_embeds" in taps


def test_image_rows_are_told_in_the_type_that_they_come_in(model: Factory) -> None:
    """Embeddings made in float32 or bfloat16, under a float64 model whose root is rounded to that type."""
    for dtype in ("float32", "bfloat16"):
        net = model(numerics=Numerics(embed_dtype=dtype))
        embeds = model(dtype).embed(image_ids())
        embeds = embeds.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else embeds
        encoded = net.encode(inputs_embeds=embeds, pixel_values=pictures("p", 3))
        assert np.isfinite(encoded.hidden).all()


EMBEDS = np.zeros((2, 5, 48))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs_embeds": EMBEDS}, r"^input_ids, inputs_embeds: expected exactly one of them, found both"),
        ({"input_ids": None}, r"^input_ids, inputs_embeds: expected exactly one of them, found neither"),
        ({"decoder_inputs_embeds": EMBEDS}, r"^decoder_input_ids, decoder_inputs_embeds: .* found both"),
        (
            {"input_ids": None, "inputs_embeds": EMBEDS[0]},
            r"^inputs_embeds: expected a non-empty \(batch, length, 48\)",
        ),
        ({"input_ids": None, "inputs_embeds": EMBEDS[:, :0]}, r"^inputs_embeds: expected a non-empty .*\(2, 0, 48\)"),
        ({"input_ids": None, "inputs_embeds": EMBEDS[..., :47]}, r"^inputs_embeds: .*48\) array, found \(2, 5, 47\)"),
        (
            {"input_ids": None, "inputs_embeds": EMBEDS.astype(int)},
            r"^inputs_embeds: expected floats, found dtype int64",
        ),
        ({"input_ids": None, "inputs_embeds": EMBEDS * np.nan}, r"^inputs_embeds: found NaN or infinity"),
        (
            {"decoder_input_ids": None, "decoder_inputs_embeds": EMBEDS[:1]},
            r"^decoder_inputs_embeds have 1 rows but the cache was started with 2",
        ),
        ({"decoder_input_ids": None}, r"^give decoder_input_ids, or labels"),
    ],
)
def test_embeddings_that_are_refused(model: Factory, changes: dict[str, Any], message: str) -> None:
    given = {"input_ids": SOURCE, "decoder_input_ids": TARGET} | changes
    with pytest.raises(ValueError, match=message):
        model()(**given)


def test_image_rows_without_pictures_are_refused(model: Factory) -> None:
    embeds = model().embed(image_ids())
    with pytest.raises(ValueError, match=rf"^inputs_embeds hold image tokens \(id {IMAGE}\) but there are no"):
        model().encode(inputs_embeds=embeds)
    with pytest.raises(ValueError, match=r"^the source holds 48 image tokens .* pixel_values give 32 feature rows"):
        model().encode(inputs_embeds=embeds, pixel_values=pictures("p", 2))


def test_labels_go_with_decoder_embeddings(model: Factory) -> None:
    net = model()
    expected = net(SOURCE, TARGET, labels=TARGET).loss
    same_bits(net(SOURCE, decoder_inputs_embeds=net.embed(TARGET), labels=TARGET).loss, expected)


def test_a_model_of_other_weights_tells_its_own_image_rows(model: Factory, config: Config) -> None:
    """The row is that of the model's own table: embeddings of another one hold no picture's place."""
    weights = seeded_weights(config)
    name = "encoder.text_model.embed_tokens.weight"
    other = T5Gemma2(config, params.tree(weights | {name: weights[name] * 2}), Numerics())
    with pytest.raises(ValueError, match=r"^the source holds 0 image tokens"):
        other.encode(inputs_embeds=model().embed(image_ids()), pixel_values=pictures("p", 3))
