"""Given embeddings, positions and masks against transformers' forward, on the bundled `tiny`, with both attentions.

Theirs runs in float32. How far it may be from our float64 run is measured: by our own float32 run, within the ratio
that the judge accepts. A mask that is not heeded moves 1e5 times as far.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers import Array, generator

import t5g2ref
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from conformance.measure.limits import LIMITS
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics

SLIDING, FULL = "sliding_attention", "full_attention"
LEAST = np.finfo(np.float32).min


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def theirs(request: pytest.FixtureRequest, peer_installed: None) -> Any:
    """transformers' own model of tiny, in float32 throughout."""
    from conformance.peers.torch.transformers import TransformersPeer

    peer = TransformersPeer(request.param)
    peer.open(resolve("tiny", synthetic=False)[0])
    return peer.model(Case("forward", "", ()))


@pytest.fixture(scope="module")
def ours() -> tuple[T5Gemma2, T5Gemma2]:
    """The same float32 weights in float64 (√hidden in float32, as theirs) and in float32."""
    target = resolve("tiny", synthetic=False)[0]
    weights = t5g2ref.params.tree(dict(target.rounded("float32").items()))
    return tuple(T5Gemma2(target.config, weights, nx) for nx in (Numerics(embed_dtype="float32"), Numerics("float32")))


def ids(name: str, batch: int, length: int) -> Array:
    return generator(name).integers(40, 290, (batch, length))


def seen(name: str, *shape: int) -> Array:
    """A random mask that leaves every query the key at its own place."""
    mask = generator(name).random(shape) < 0.4
    mask[..., np.arange(shape[2]) % shape[3], :] |= np.eye(shape[2], shape[3], shape[3] - shape[2], dtype=bool)
    return mask


def form(theirs: Any, mask: Any, least: float = LEAST) -> Any:
    """As their attention takes it: sdpa bool, eager what is added to scores."""
    import torch

    if isinstance(mask, dict):
        return {kind: form(theirs, one, least) for kind, one in mask.items()}
    if mask is None or (theirs.config._attn_implementation == "sdpa" and least == LEAST):
        return None if mask is None else torch.tensor(mask)
    return torch.tensor(np.where(mask, 0.0, least), dtype=torch.float32)


def called(module: Any, **given: Any) -> Any:
    import torch

    with torch.no_grad():
        return module(**{k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in given.items()})


def cache_name(module: Any) -> str:
    """What this release calls a cache."""
    from conformance.peers.torch import releases

    return releases.cache_name(type(module).forward)


def as_near(found: Any, truth: Array, control: Array) -> None:
    """The ratio of the errors of their float32 run and of ours, over all numbers."""
    error, usual = (float(np.linalg.norm(x - truth)) for x in (found.numpy().astype(np.float64), control))
    assert error <= LIMITS["cumulative"] * usual


def agree(ours: Any, run: Any, found: Any) -> None:
    as_near(found, *(run(model) for model in ours))


# Embeddings


def test_embeddings_are_what_ids_become(theirs: Any, ours: Any) -> None:
    """Not scaled again, and an end-of-image row is a row like others."""
    source, target = ids("a", 2, 9), ids("b", 2, 5)
    source[0, 3] = target[1, 2] = ours[0].config.eoi_token_index
    table = theirs.get_encoder().text_model.embed_tokens
    import torch

    with torch.no_grad():
        given = {"inputs_embeds": table(torch.tensor(source)), "decoder_inputs_embeds": table(torch.tensor(target))}
    for name, embeds, at in (("inputs_embeds", source, 0), ("decoder_inputs_embeds", target, 1)):
        assert np.array_equal(given[name].numpy(), ours[1].embed(embeds)), at
    own = {name: value.numpy() for name, value in given.items()}
    agree(ours, lambda model: model(**own).logits, called(theirs, **given).logits)
    other = {name: value * 1.5 for name, value in own.items()}
    agree(ours, lambda model: model(**other).logits, called(theirs, **other).logits)


def test_pictures_take_the_rows_of_the_image_token(theirs: Any, ours: Any) -> None:
    c = ours[0].config
    block = [c.boi_token_index, *[c.image_token_index] * c.mm_tokens_per_image, c.eoi_token_index]
    source, side = np.array([[50, 17, *block, 40], [9, *block, 41, 42]]), c.vision.image_size
    pixels = generator("pixels").uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    given = {"inputs_embeds": ours[1].embed(source), "pixel_values": pixels, "decoder_input_ids": ids("b", 2, 4)}
    found = called(theirs, **given).logits
    agree(ours, lambda model: model(**given).logits, found)
    for model in ours:  # each with the embeddings of its own type
        own = given | {"inputs_embeds": model.embed(source)}
        assert np.array_equal(model(**own).logits, model(source, ids("b", 2, 4), pixel_values=pixels).logits)
    with pytest.raises(ValueError, match="tokens: 0, features"):
        called(theirs, **given | {"inputs_embeds": given["inputs_embeds"] * np.float32(1.5)})
    with pytest.raises(ValueError, match=r"^the source holds 0 image tokens"):
        ours[0](**given | {"inputs_embeds": given["inputs_embeds"] * 1.5})


def test_both_or_neither_is_refused_by_both(theirs: Any, ours: Any) -> None:
    source, target = ids("a", 1, 4), ids("b", 1, 3)
    embeds = ours[1].embed(source)
    for given in (
        {"input_ids": source, "inputs_embeds": embeds, "decoder_input_ids": target},
        {"decoder_input_ids": target},
        {"input_ids": source, "decoder_input_ids": target, "decoder_inputs_embeds": embeds},
    ):
        for model in (lambda **k: called(theirs, **k), ours[0]):
            with pytest.raises(ValueError, match="exactly one of"):
                model(**given)


# Masks


@pytest.mark.parametrize("seed", range(3))
def test_the_encoders_mask(seed: int, theirs: Any, ours: Any) -> None:
    """One for all layers, then one a layer kind: in the place of the window and of padding."""
    source, encoder = ids(f"s{seed}", 2, 23), theirs.get_encoder()
    one, other = seen(f"one {seed}", 2, 1, 23, 23), seen(f"other {seed}", 2, 1, 23, 23)
    found = called(encoder, input_ids=source, attention_mask=form(theirs, {FULL: one, SLIDING: one}))
    agree(ours, lambda model: model.encode(source, one).hidden, found.last_hidden_state)
    both = {FULL: one, SLIDING: other}
    found = called(encoder, input_ids=source, attention_mask=form(theirs, both))
    agree(ours, lambda model: model.encode(source, both).hidden, found.last_hidden_state)


@pytest.mark.parametrize("seed", range(3))
def test_the_decoders_masks(seed: int, theirs: Any, ours: Any) -> None:
    """Own keys alone, the encoder's alone, both; what is not given goes by the rules."""
    source, target = ids(f"s{seed}", 2, 13), ids(f"t{seed}", 2, 21)
    padding = np.ones((2, 13), np.int64)
    padding[0, :4] = 0
    one, other, cross = (seen(f"{n} {seed}", 2, 1, 21, s) for n, s in (("a", 21), ("b", 21), ("c", 13)))
    encoded = [model.encode(source, padding) for model in ours]
    hidden = called(theirs.get_encoder(), input_ids=source, attention_mask=padding).last_hidden_state
    for own, over in (({FULL: one, SLIDING: other}, cross), (one, None), (None, cross)):
        given = {"attention_mask": form(theirs, own), "encoder_attention_mask": form(theirs, over)}
        if over is None:
            given["encoder_attention_mask"] = padding
        found = called(theirs.get_decoder(), input_ids=target, encoder_hidden_states=hidden, **given)
        runs = [
            model.decode(target, model.start(e), own, cross_attention_mask=over)[0]
            for model, e in zip(ours, encoded, strict=True)
        ]
        as_near(found.last_hidden_state, *runs)


@pytest.mark.parametrize("seed", range(2))
def test_masks_of_cached_calls(seed: int, theirs: Any, ours: Any) -> None:
    """Past the window a sliding layer keeps its last W − 1 keys: theirs takes masks of that width for these layers."""
    source, target, cuts = ids(f"s{seed}", 2, 13), ids(f"t{seed}", 2, 31), [0, 12, 13, 26, 31]
    window, hidden = ours[0].config.decoder.sliding_window, None
    both = {FULL: seen(f"f{seed}", 2, 1, 31, 31), SLIDING: seen(f"l{seed}", 2, 1, 31, 31)}
    cross, causal = seen(f"c{seed}", 2, 1, 31, 13), np.tri(31, dtype=bool)
    hidden = called(theirs.get_encoder(), input_ids=source).last_hidden_state
    theirs_cache, caches = None, [model.start(model.encode(source)) for model in ours]
    for first, last in pairwise(cuts):
        start = max(0, first - (window - 1))
        own = {kind: mask[:, :, first:last, :last] & causal[first:last, :last] for kind, mask in both.items()}
        own[SLIDING][..., :start] = False
        narrow = {FULL: own[FULL], SLIDING: own[SLIDING][..., start:]}
        found = called(
            theirs.get_decoder(),
            input_ids=target[:, first:last],
            attention_mask=form(theirs, narrow),
            encoder_hidden_states=hidden,
            encoder_attention_mask=form(theirs, cross[:, :, first:last]),
            **{cache_name(theirs.get_decoder()): theirs_cache},
            use_cache=True,
        )
        theirs_cache, runs = getattr(found, cache_name(theirs.get_decoder())), []
        for n, model in enumerate(ours):
            given = (target[:, first:last], caches[n], own)
            out, caches[n] = model.decode(*given, cross_attention_mask=cross[:, :, first:last])
            runs.append(out)
        as_near(found.last_hidden_state, *runs)


@pytest.mark.parametrize("least", [LEAST, -np.inf, -1e9])
def test_added_masks_mean_the_same(least: float, theirs: Any, ours: Any) -> None:
    source, mask = ids("s", 2, 11), seen("m", 2, 1, 11, 11)
    given = form(theirs, mask, least)
    found = called(theirs.get_encoder(), input_ids=source, attention_mask={FULL: given, SLIDING: given})
    added = np.where(mask, 0.0, least)
    agree(ours, lambda model: model.encode(source, added).hidden, found.last_hidden_state)
    assert np.array_equal(ours[0].encode(source, added).hidden, ours[0].encode(source, mask).hidden)


def test_the_whole_model_takes_one_mask_for_both_where_it_fits(theirs: Any, ours: Any) -> None:
    """Theirs lays the encoder's own mask over the cross half; ours is told so, or refuses."""
    source, target, mask = ids("s", 2, 9), ids("t", 2, 9), seen("m", 2, 1, 9, 9)
    found = called(theirs, input_ids=source, decoder_input_ids=target, attention_mask=form(theirs, mask)).logits
    given = {"attention_mask": mask, "cross_attention_mask": mask}
    agree(ours, lambda model: model(source, target, **given).logits, found)
    with pytest.raises(RuntimeError, match="must match"):
        called(theirs, input_ids=source, decoder_input_ids=target[:, :5], attention_mask=form(theirs, mask))
    with pytest.raises(ValueError, match=r"^attention_mask: a 4-D one needs a cross_attention_mask"):
        ours[0](source, target[:, :5], attention_mask=mask)


def test_a_row_that_sees_nothing(theirs: Any, ours: Any) -> None:
    """Theirs: zeros, NaN or a mean, by type and attention. Ours is refused where anyone sees that row; where none does,
    every other row is as theirs."""
    source, mask = ids("s", 1, 9), seen("m", 1, 1, 9, 9)
    mask[0, 0, 4] = False
    with pytest.raises(ValueError, match=r"^attention_mask: query 4 of row 0 sees no key, and others see it"):
        ours[0].encode(source, mask)
    mask[..., 4] = False
    found = called(theirs.get_encoder(), input_ids=source, attention_mask=form(theirs, {FULL: mask, SLIDING: mask}))
    rest = np.arange(9) != 4
    agree(ours, lambda model: model.encode(source, mask).hidden[:, rest], found.last_hidden_state[:, rest])
    encoded = ours[0].encode(source, mask)
    assert np.isfinite(encoded.hidden).all()
    assert np.array_equal(encoded.valid, rest[None])


# Positions


def test_positions_beside_padding_and_a_cache(theirs: Any, ours: Any) -> None:
    """Left padding moves no position and no window; given positions turn the angles alone, in cached calls too."""
    source, target = ids("s", 2, 11), ids("t", 2, 25)
    mask, padding = np.ones((2, 11), np.int64), np.ones((2, 25), np.int64)
    mask[0, :5], padding[1, :7] = 0, 0
    positions, new = generator("p").integers(0, 60, (2, 11)), np.maximum(np.cumsum(padding, axis=1) - 1, 0)
    found, cache, runs, first = [], None, [[], []], 0
    encoded = [model.encode(source, mask, positions) for model in ours]
    caches = [model.start(e) for model, e in zip(ours, encoded, strict=True)]
    for last in (9, 10, 25):
        whole = {"attention_mask": mask, "decoder_attention_mask": padding[:, :last], cache_name(theirs): cache}
        part = {"decoder_input_ids": target[:, first:last], "decoder_position_ids": new[:, first:last]}
        out = called(theirs, input_ids=source, position_ids=positions, use_cache=True, **whole, **part)
        cache = getattr(out, cache_name(theirs))
        found.append(out.logits.numpy()[padding[:, first:last] == 1])
        for n, model in enumerate(ours):
            given = (target[:, first:last], caches[n], padding[:, first:last], new[:, first:last])
            hidden, caches[n] = model.decode(*given)
            runs[n].append(model.logits(hidden)[padding[:, first:last] == 1])
        first = last
    import torch

    as_near(torch.tensor(np.concatenate(found)), *(np.concatenate(run) for run in runs))


def test_positions_that_start_again_are_no_packing_here(theirs: Any, ours: Any) -> None:
    """Without a cache and a mask theirs takes a jump as the next of several packed texts: a mask gives that here."""
    source, target = ids("s", 1, 7), ids("t", 1, 6)
    positions, owner = np.array([[0, 1, 2, 0, 1, 2]]), np.array([0, 0, 0, 1, 1, 1])
    packed = ((owner[:, None] == owner) & np.tri(6, dtype=bool))[None, None]
    given = {"input_ids": source, "decoder_input_ids": target, "decoder_position_ids": positions}
    found = called(theirs, **given, use_cache=True).logits
    agree(ours, lambda model: model(**given).logits, found)
    found = called(theirs, **given, use_cache=False).logits
    agree(ours, lambda model: model(**given, decoder_attention_mask=packed).logits, found)
