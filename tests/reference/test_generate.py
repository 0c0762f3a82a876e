"""Greedy generation with the cache: the argmax of the whole uncached model at every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Array, close, generator, same_bits

import t5g2ref
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from conformance.measure.limits import LIMITS
from conformance.measure.ratio import examine
from conformance.oracle.run_case import models
from t5g2ref import taps
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.starts import start_of
from t5g2ref.model import T5Gemma2

STEPS = 40  # more than twice the decoder's window


@pytest.fixture(scope="module")
def model() -> T5Gemma2:
    return t5g2ref.load(t5g2ref.bundled("tiny"))


@pytest.fixture(scope="module")
def bos(model: T5Gemma2) -> int:
    return model.config.decoder.bos_token_id


@pytest.fixture(scope="module")
def pad(model: T5Gemma2) -> int:
    return model.config.decoder.pad_token_id


def prompt(model: T5Gemma2, seed: int, rows: int = 2, length: int = 12) -> Array:
    """(rows, length) ordinary ids behind bos; 12 are past the encoder's window."""
    ids = generator(f"prompt {seed}").integers(10, 290, (rows, length))
    ids[:, 0] = model.config.decoder.bos_token_id
    return ids


# Against the model without a cache


@pytest.mark.parametrize("seed", range(3))
def test_each_id_is_the_argmax_of_the_uncached_model(seed: int, model: T5Gemma2, bos: int) -> None:
    ids = prompt(model, seed)
    start = None if seed == 0 else prompt(model, 50 + seed, length=3)
    found = greedy(model, ids, decoder_input_ids=start, max_new_tokens=STEPS, stop=())
    began = 1 if start is None else 3
    assert found.ids.shape == (2, began + STEPS)
    assert (found.ids[:, 0] == bos).all()
    whole = model(ids, found.ids[:, :-1]).logits[:, began - 1 :]
    assert np.array_equal(found.ids[:, began:], whole.argmax(axis=-1))
    # the same numbers by other blocks: a few hundred roundings in a sum, the logits capped at 30
    close(found.logits, whole, atol=1e-11)


def test_padded_source_and_image(model: T5Gemma2) -> None:
    """Mask and pixels reach the encoder, in every step's logits."""
    c = model.config
    block = [c.boi_token_index, *[c.image_token_index] * c.mm_tokens_per_image, c.eoi_token_index]
    ids = np.array([[5, 17, *block, 40, 41], [3, 3, 5, *block, 60]])
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    side = c.vision.image_size
    given = {"attention_mask": mask, "pixel_values": generator("picture").uniform(-1, 1, (2, 3, side, side))}
    found = greedy(model, ids, max_new_tokens=9, stop=(), **given)  # type: ignore[arg-type]
    whole = model(ids, found.ids[:, :-1], **given).logits
    assert np.array_equal(found.ids[:, 1:], whole.argmax(axis=-1))
    close(found.logits, whole, atol=1e-11)
    other = given | {"pixel_values": -given["pixel_values"]}
    assert not np.array_equal(found.logits, greedy(model, ids, max_new_tokens=9, stop=(), **other).logits)  # type: ignore[arg-type]
    unmasked = given | {"attention_mask": None}
    assert not np.array_equal(found.logits, greedy(model, ids, max_new_tokens=9, stop=(), **unmasked).logits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no pixel_values"):
        greedy(model, ids, max_new_tokens=9, stop=(), attention_mask=mask)


def test_rows_do_not_see_each_other(model: T5Gemma2) -> None:
    ids = prompt(model, 7, rows=3)
    together = greedy(model, ids, max_new_tokens=STEPS, stop=()).ids
    for row in range(3):
        assert np.array_equal(greedy(model, ids[row : row + 1], max_new_tokens=STEPS, stop=()).ids[0], together[row])


def test_deterministic(model: T5Gemma2) -> None:
    first, second = (greedy(model, prompt(model, 1), max_new_tokens=8, stop=()) for _ in range(2))
    same_bits(first.ids, second.ids)
    same_bits(first.logits, second.logits)


# Stopping


def late(ids: Array) -> tuple[int, int]:
    """A row and an id that it has first in the middle, and whose first place in the other row is elsewhere."""
    for row in range(len(ids)):
        for step in range(4, ids.shape[1] - 6):
            token = int(ids[row, step])
            if token not in ids[row, :step] and step not in np.nonzero(ids[1 - row] == token)[0][:1]:
                return row, token
    raise AssertionError(f"no such id in {ids.tolist()}: take another prompt")


def test_a_row_ends_behind_its_stop_id(model: T5Gemma2, pad: int) -> None:
    ids = prompt(model, 0)
    free = greedy(model, ids, max_new_tokens=STEPS, stop=()).ids
    row, token = late(free)
    end = int(np.nonzero(free[row] == token)[0][0])
    found = greedy(model, ids, max_new_tokens=STEPS, stop=(token,)).ids
    assert np.array_equal(found[row, : end + 1], free[row, : end + 1]), "the stop id itself is part of the row"
    assert (found[row, end + 1 :] == pad).all()
    other = free[1 - row][: found.shape[1]]
    ends = np.nonzero(other == token)[0]
    stop = int(ends[0]) if len(ends) else len(other) - 1
    assert np.array_equal(found[1 - row, : stop + 1], other[: stop + 1]), "the other row goes on"
    assert (found[1 - row, stop + 1 :] == pad).all()
    assert found.shape[1] == 1 + (STEPS if not len(ends) else max(stop, end)), "it ends with the last row"


def test_stops_where_the_configuration_says(model: T5Gemma2) -> None:
    ids = prompt(model, 2, rows=1)
    free = greedy(model, ids, max_new_tokens=STEPS, stop=()).ids
    token = int(free[0, 3])
    end = int(np.nonzero(free[0, 1:] == token)[0][0]) + 1
    stack = model.config.decoder
    for eos in ((token,), (stack.eos_token_id[0], token)):
        config = replace(model.config, decoder=replace(stack, eos_token_id=eos))
        found = greedy(T5Gemma2(config, model.weights, model.nx), ids, max_new_tokens=STEPS)
        assert found.ids.shape == (1, end + 1)
        assert found.ids[0, -1] == token
        assert found.logits.shape[:2] == (1, end)


def test_an_empty_stop_list_runs_on(model: T5Gemma2) -> None:
    """Not to be taken for none given, for which the configuration's eos ends a row: here the second id is eos."""
    ids, eos = [[33, 236, 122]], model.config.decoder.eos_token_id[0]
    free = greedy(model, ids, max_new_tokens=12, stop=()).ids
    assert free.shape == (1, 13)
    assert (free[0] == eos).argmax() == 2
    assert np.array_equal(greedy(model, ids, max_new_tokens=12).ids, free[:, :3])


@pytest.mark.parametrize("count", [0, -1])
def test_nothing_to_generate_is_refused(count: int, model: T5Gemma2) -> None:
    with pytest.raises(ValueError, match=f"max_new_tokens: expected at least 1, found {count}"):
        greedy(model, prompt(model, 0), max_new_tokens=count)


def test_one_token(model: T5Gemma2) -> None:
    found = greedy(model, prompt(model, 0), max_new_tokens=1, stop=())
    assert (found.ids.shape, found.logits.shape) == ((2, 2), (2, 1, model.config.decoder.vocab_size))


# Beginning


def test_start_ids(model: T5Gemma2, bos: int) -> None:
    def ids(batch: int, *given: Any) -> list[list[int]]:
        found: list[list[int]] = start_of(model, batch, *given).ids.tolist()
        return found

    assert ids(2) == [[bos], [bos]]
    assert ids(2, [[40, 41], [42, 43]]) == [[bos, 40, 41], [bos, 42, 43]]
    assert ids(2, [[bos, 41], [bos, 43]]) == [[bos, 41], [bos, 43]]
    assert ids(1, [[41, bos]]) == [[bos, 41, bos]], "bos further on begins nothing"
    assert ids(2, np.zeros((2, 0), int)) == [[bos], [bos]]


def test_starts_of_unlike_lengths(model: T5Gemma2, bos: int) -> None:
    """Padding is in front. Where a row begins behind it with bos, all do and it is there; else it goes before it."""
    mask, pad = [[0, 0, 1], [1, 1, 1]], model.config.decoder.pad_token_id
    there = start_of(model, 2, [[pad, pad, bos], [bos, 40, 41]], mask)
    assert (there.ids.tolist(), there.mask.tolist()) == (
        [[pad, pad, bos], [bos, 40, 41]],
        np.array(mask, bool).tolist(),
    )
    made = start_of(model, 2, [[pad, pad, 44], [42, 40, 41]], mask)
    assert made.ids.tolist() == [[bos, pad, pad, 44], [bos, 42, 40, 41]]
    assert made.mask.tolist() == [[True, False, False, True], [True] * 4]


@pytest.mark.parametrize(
    ("given", "mask", "message"),
    [
        (None, [[1]], r"^decoder_attention_mask: expected decoder_input_ids beside it, found none"),
        ([[9, 8]], [[1, 0]], r"^decoder_attention_mask: expected 0 \(padding\) in front and at least one 1 behind"),
        ([[9, 8], [7, 7]], [[0, 0], [1, 1]], r"at least one 1 behind it, in every row"),
        ([[9, 8, 7], [7, 7, 7]], [[0, 1, 1], [0, 0, 1]], r"^decoder_attention_mask: expected a row without padding"),
        ([[9, 8]], [[1, 1, 1]], r"^decoder_attention_mask: expected shape \(1, 2\) as the ids, found \(1, 3\)"),
        ([[9, 8]], [[0.5, 1]], r"^decoder_attention_mask: expected only 1 \(keep\) and 0 \(padding\)"),
        ([["bos", 8], [7, 7]], [[0, 1], [1, 1]], r"^decoder_input_ids: bos \(\d+\) is padding and begins no row"),
        ([[9, "bos"], [7, 7]], [[0, 1], [1, 1]], r"^decoder_input_ids: some rows begin with bos"),
    ],
)
def test_starts_that_are_refused(given: Any, mask: Any, message: str, model: T5Gemma2, bos: int) -> None:
    given = given and [[bos if token == "bos" else token for token in row] for row in given]
    with pytest.raises(ValueError, match=message):
        start_of(model, len(mask), given, mask)


@pytest.mark.parametrize("mask", [np.ones((2, 1, 9, 9), bool), {"full_attention": np.ones((2, 1, 9, 9), bool)}])
def test_a_mask_of_the_callers_is_for_forward_alone(mask: Any, model: T5Gemma2) -> None:
    with pytest.raises(ValueError, match=r"^attention_mask: expected \(batch, length\) of 1 and 0, found a 4-D one"):
        greedy(model, prompt(model, 0), attention_mask=mask, max_new_tokens=1)


def test_from_embeddings_and_at_given_positions(model: T5Gemma2) -> None:
    """Embeddings of ids are these ids; positions are the source's, as in `encode`."""
    ids = prompt(model, 0)
    positions = np.arange(ids.shape[1])[None] * 3
    told, plain = greedy(model, inputs_embeds=model.embed(ids), max_new_tokens=4), greedy(model, ids, max_new_tokens=4)
    same_bits(told.logits, plain.logits)
    moved = greedy(model, ids, position_ids=positions, max_new_tokens=4, stop=())
    same_bits(moved.logits[:, :1], model(ids, moved.ids[:, :1], position_ids=positions).logits)
    assert (moved.logits[:, 0] != plain.logits[:, 0]).any()
    with pytest.raises(ValueError, match="expected exactly one of them, found both"):
        greedy(model, ids, inputs_embeds=model.embed(ids), max_new_tokens=1)


def test_mixed_starts_are_refused(model: T5Gemma2, bos: int) -> None:
    with pytest.raises(ValueError, match=rf"some rows begin with bos \({bos}\) and some do not; begin all or none"):
        greedy(model, prompt(model, 0), decoder_input_ids=[[bos, 40], [41, 42]], max_new_tokens=1)


@pytest.mark.parametrize("given", [[40], [[40]], [[40]] * 3, [[[40]], [[41]]]])
def test_wrong_shape_is_refused(given: Any, model: T5Gemma2) -> None:
    with pytest.raises(ValueError, match=r"decoder_input_ids: expected \(2, length\), found shape"):
        greedy(model, prompt(model, 0), decoder_input_ids=given, max_new_tokens=1)


@pytest.mark.parametrize("length", [1, 5, 6, 7, 11])
def test_goes_on_from_a_given_start(length: int, model: T5Gemma2) -> None:
    """One call over the start, past the window or not, and the rest is what came without it."""
    ids = prompt(model, 3)
    free = greedy(model, ids, max_new_tokens=16, stop=())
    found = greedy(model, ids, decoder_input_ids=free.ids[:, : length + 1], max_new_tokens=16 - length, stop=())
    assert np.array_equal(found.ids, free.ids)
    close(found.logits, free.logits[:, length:], atol=1e-11)


# Streaming


def test_each_step_is_told(model: T5Gemma2) -> None:
    told: list[Array] = []
    found = greedy(model, prompt(model, 0), max_new_tokens=9, stop=(), on_token=told.append)
    assert [t.shape for t in told] == [(2,)] * 9
    assert np.array_equal(np.stack(told, axis=1), found.ids[:, 1:])


def test_a_callback_that_raises_ends_it(model: T5Gemma2) -> None:
    def enough(token: Array) -> None:
        raise StopIteration("enough")

    with pytest.raises(StopIteration, match="enough"):
        greedy(model, prompt(model, 0), on_token=enough)


# Against transformers


@pytest.fixture(scope="module")
def theirs(peer_installed: None) -> Any:
    """transformers' own model of tiny, in float32 throughout."""
    from conformance.peers.torch.transformers import TransformersPeer

    peer = TransformersPeer("sdpa")
    peer.open(resolve("tiny", synthetic=False)[0])
    model = peer.model(Case("generate", "", ()))
    model.generation_config.eos_token_id = None  # a None in the call's own settings means: as the model's
    return model


@pytest.fixture(scope="module")
def ours() -> list[T5Gemma2]:
    """[truth, control, …] over the same float32 weights, √hidden in float32 as theirs."""
    target = resolve("tiny", synthetic=False)[0]
    return models(target.config, target.weights, Case("generate", "", ()), "float32")


@pytest.mark.parametrize("seed", range(4))
def test_generates_what_transformers_generates(seed: int, theirs: Any, ours: list[T5Gemma2], bos: int) -> None:
    """24 steps with caches, past both windows: the same ids, and logits as near the truth as float32 comes.

    In float32 the two best logits would have to be within 1e-5 of each other for another id to be right.
    """
    import torch
    from transformers import GenerationConfig

    ids, start = prompt(ours[0], 100 + seed), prompt(ours[0], 200 + seed, length=4)
    pad = ours[0].config.decoder.pad_token_id
    settings = GenerationConfig(
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=pad,
        bos_token_id=bos,
        decoder_start_token_id=bos,
        output_logits=True,
        return_dict_in_generate=True,
        use_cache=True,
    )
    begun = {"input_ids": torch.tensor(ids), "decoder_input_ids": torch.tensor(start)}
    out = theirs.generate(**begun, generation_config=settings)
    truth, *controls = (greedy(model, ids, decoder_input_ids=start, max_new_tokens=STEPS, stop=()) for model in ours)
    assert out.sequences.shape == (2, 4 + STEPS)
    assert np.array_equal(out.sequences.numpy(), truth.ids)
    assert all(np.array_equal(control.ids, truth.ids) for control in controls), "the contexts are the same"
    best = np.sort(truth.logits, axis=-1)
    assert (best[..., -1] - best[..., -2]).min() > 1e-5
    (tap,) = (tap for tap in taps.table(ours[0].config) if tap.name == "logits")
    found = examine(
        tap,
        0,
        torch.stack(out.logits, dim=1).numpy(),
        truth.logits,
        [control.logits for control in controls],
        None,
        dtype="float32",
        limit=LIMITS["cumulative"],
    )
    assert found.passed, found
    assert found.tokens == 2 * STEPS
