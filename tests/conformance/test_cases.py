"""The cases: legal inputs on every geometry, that are what their titles say, and the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from built_cases import GEOMETRIES, built, geometry
from helpers import same_bits

from conformance.cases.case import Case, Run
from conformance.cases.catalogue import build, select
from conformance.cases.ingredients import LOGITS
from t5g2ref.config import Config
from t5g2ref.numerics import Numerics
from t5g2ref.outputs import shift_right


def runs(name: str) -> Iterator[tuple[Case, Run]]:
    return ((case, run) for case in built(name) for run in case.runs)


def case(name: str, of: str) -> Case:
    (found,) = select(built(name), [of])
    return found


@pytest.fixture(params=GEOMETRIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(name: str) -> Config:
    return geometry(name)


def test_names(name: str) -> None:
    names = [c.name for c in built(name)]
    assert len(set(names)) == len(names) == 25
    assert names == [c.name for c in built("tiny")], "one list for every geometry"
    assert all(c.title for c in built(name))


def test_built_twice_is_the_same(name: str, config: Config) -> None:
    for first, second in zip(built(name), build(config), strict=True):
        for one, two in zip(first.runs, second.runs, strict=True):
            for field in fields(Run):
                a, b = getattr(one, field.name), getattr(two, field.name)
                if isinstance(a, np.ndarray):
                    same_bits(a, b)
                else:
                    assert a == b


def test_a_case_does_not_depend_on_the_others() -> None:
    """Its generator is its own, so that `--case` runs what the whole suite runs."""
    ids = [run.input_ids[0, 1:5].tolist() for _, run in runs("tiny")]
    assert len({tuple(i) for i in ids}) > 15, "the cases draw from one seed each, and not all from the same"


def test_ids_and_masks(name: str, config: Config) -> None:
    for c, run in runs(name):
        for ids, mask in (
            (run.input_ids, run.attention_mask),
            (run.decoder_input_ids, run.decoder_attention_mask),
        ):
            assert ids.dtype == np.int64, c.name
            assert ids.ndim == 2, c.name
            assert 0 <= ids.min() <= ids.max() < config.decoder.vocab_size, c.name
            if mask is not None:
                assert mask.dtype == np.int64, c.name
                assert mask.shape == ids.shape, c.name
                assert set(np.unique(mask)) == {0, 1}, f"{c.name}: a mask that masks nothing tests nothing"
                assert mask.any(axis=1).all(), f"{c.name}: an empty row"
        assert run.input_ids.shape[0] == run.decoder_input_ids.shape[0], c.name


def test_rows_begin_with_bos(name: str, config: Config) -> None:
    for c, run in runs(name):
        for ids, valid in ((run.input_ids, run.encoder_valid), (run.decoder_input_ids, run.decoder_valid)):
            first = valid.argmax(axis=1)
            begins = ids[np.arange(len(ids)), first] == config.decoder.bos_token_id
            if c.name == "images" and ids is run.input_ids:  # its second row begins with a placeholder
                assert ids[1, 0] == config.image_token_index
                begins = begins[:1]
            assert begins.all(), c.name


def test_special_ids_are_only_where_they_are_meant(name: str, config: Config) -> None:
    """An end-of-image id by chance would make another case out of this one; pad marks padding, and nothing else."""
    stack = config.decoder
    image = {config.boi_token_index, config.eoi_token_index, config.image_token_index}
    for c, run in runs(name):
        for side, ids, valid in (
            ("encoder", run.input_ids, run.encoder_valid),
            ("decoder", run.decoder_input_ids, run.decoder_valid),
        ):
            here = set(ids[valid].tolist())
            meant = image if c.name in ("image", "images") and side == "encoder" else set()
            meant |= {config.eoi_token_index} if c.name in ("eoi", "eoi-cached") else set()
            assert here & image == meant, (c.name, side)
            assert not here & set(stack.eos_token_id), (c.name, side)
            shifted, as_a_token = c.name == "loss" and side == "decoder", stack.pad_token_id == 0 and not valid.all()
            assert (stack.pad_token_id in here) == (shifted or as_a_token), (c.name, side)
            assert (ids[~valid] == stack.pad_token_id).all(), (c.name, side)
            bos = 2 if run.derived and side == "decoder" else 1  # there what is shifted begins with one as well
            every = (ids == stack.bos_token_id).sum(axis=1)
            counted = every[:1] if c.name == "images" and side == "encoder" else every
            assert (counted == bos).all(), (c.name, side)


def test_every_padded_batch_has_an_id_0_that_is_no_padding(name: str) -> None:
    """A token like any other, even where 0 is the pad id: the mask says what is padding (D70)."""
    padded = 0
    for c, run in runs(name):
        for ids, valid in ((run.input_ids, run.encoder_valid), (run.decoder_input_ids, run.decoder_valid)):
            if not valid.all():
                padded += 1
                assert ((ids == 0) & valid).any(), c.name
    assert padded >= 10


def test_images_fill_their_tokens(name: str, config: Config) -> None:
    seen = 0
    for c, run in runs(name):
        tokens = run.input_ids == config.image_token_index
        images = 0 if run.pixel_values is None else len(run.pixel_values)
        assert int(tokens.sum()) == images * config.mm_tokens_per_image, c.name
        if run.pixel_values is None:
            continue
        seen += 1
        side = config.vision.image_size
        assert run.pixel_values.shape == (images, config.vision.num_channels, side, side)
        assert run.pixel_values.dtype == np.float32
        assert np.abs(run.pixel_values).max() <= 1
        blocks = {"image": [1], "images": [2, 1]}[c.name]
        size = config.mm_tokens_per_image
        for row, count in zip(run.input_ids, blocks, strict=True):  # each: boi, one block of image tokens, eoi
            (at,) = np.nonzero(row == config.image_token_index)
            assert len(at) == count * size
            for block in at.reshape(count, size):
                assert block.tolist() == list(range(block[0], block[0] + size))
                before = config.boi_token_index if block[0] else row[block[0] - 1]  # at 0 nothing is before it
                assert (row[block[0] - 1], row[block[-1] + 1]) == (before, config.eoi_token_index)
            assert (row == config.boi_token_index).sum() == count - (at[0] == 0)
            assert (row == config.eoi_token_index).sum() == count
        for picture in run.pixel_values:  # a transposed or mirrored one must be another picture
            for other in (picture.swapaxes(1, 2), picture[:, ::-1], picture[:, :, ::-1], picture[::-1]):
                assert not np.array_equal(picture, other)
    assert seen == 2
    pictures = case(name, "images").runs[0].pixel_values
    assert pictures is not None
    assert len({picture.tobytes() for picture in pictures}) == len(pictures) == 3, "no two alike"


def test_calls_cover_the_decoder_ids(name: str) -> None:
    for c, run in runs(name):
        lengths = [last - first for first, last in run.bounds]
        assert sum(lengths) == run.decoder_input_ids.shape[1], c.name
        assert min(lengths) >= 1, c.name
        assert [first for first, _ in run.bounds] == [0, *(last for _, last in run.bounds[:-1])], c.name
        assert run.splits is None or (len(run.splits) > 1 and tuple(lengths) == run.splits), c.name


def test_lengths_are_what_the_titles_say(name: str, config: Config) -> None:
    encoder, decoder = config.encoder.sliding_window, config.decoder.sliding_window

    def only(of: str) -> Run:
        (run,) = case(name, of).runs
        return run

    def shapes(of: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return only(of).input_ids.shape, only(of).decoder_input_ids.shape

    assert shapes("short") == ((1, 5), (1, 4))
    window = only("window")
    # past both sides of a query in the middle, so that left, right and their parity all show
    assert window.input_ids.shape[1] > 2 * encoder
    assert window.attention_mask is None, "a mask of ones would take another path in a peer"
    for side in ("left", "right"):
        run = only(f"padded-{side}")
        for mask, longest in ((run.attention_mask, encoder), (run.decoder_attention_mask, decoder)):
            assert mask is not None
            assert mask.shape[0] == 3
            assert mask.shape[1] > longest
            assert len(set(mask.sum(axis=1).tolist())) == 3, "ragged"
            steps = np.diff(mask, axis=1)
            assert (steps <= 0).all() if side == "right" else (steps >= 0).all(), "padding on one side only"
    ragged = only("padded-left-cached")
    for mask in (ragged.attention_mask, ragged.decoder_attention_mask):
        assert mask is not None
        assert mask.shape[0] == len(set(mask.sum(axis=1).tolist())) == 3, "ragged"
        assert (np.diff(mask, axis=1) >= 0).all(), "padding on the left only"
    assert ragged.splits is not None
    assert len(ragged.splits) >= 3, "more than one call under a cache that is not empty"
    assert not ragged.decoder_valid[:, : ragged.splits[0]].all(), "the cache holds padding"
    cached = only("cross-cached")
    assert cached.input_ids.shape[1] > max(encoder, decoder)
    assert cached.splits is not None
    for of in ("decoder-window", "decoder-steps", "decoder-split"):
        assert only(of).decoder_input_ids.shape[1] > decoder
    assert only("decoder-window").splits is None
    steps = only("decoder-steps").splits
    assert steps is not None
    assert set(steps[1:]) == {1}
    assert steps[0] < decoder < sum(steps), "the single steps walk over the window's edge"
    splits = only("decoder-split").splits
    assert splits is not None
    assert splits[0] < decoder < splits[0] + splits[1], "a call of more than one token walks over it"
    for of in ("eoi", "eoi-cached"):
        for ids in (only(of).input_ids, only(of).decoder_input_ids):
            assert (ids == config.eoi_token_index).any()
    (at,) = np.nonzero((only("eoi-cached").decoder_input_ids == config.eoi_token_index).any(axis=0))
    assert at.max() >= only("eoi-cached").bounds[1][0], "in a later call than the first"
    assert (shapes("image")[0][0], shapes("images")[0][0]) == (1, 2)
    assert only("image").splits == (3, 1, 1)
    images = only("images")
    assert images.attention_mask is not None
    assert (np.diff(images.attention_mask, axis=1) <= 0).all(), "padded right"
    assert images.attention_mask[0].all()
    assert not images.attention_mask[1].all(), "the row of one picture is the shorter one"
    assert shapes("equal-lengths")[0] == shapes("equal-lengths")[1]
    far = only("far-positions")
    for positions, ids, stack in (
        (far.position_ids, far.input_ids, config.encoder),
        (far.decoder_position_ids, far.decoder_input_ids, config.decoder),
    ):
        assert positions is not None
        assert positions.shape == ids.shape == (2, ids.shape[1])
        assert positions.min() >= 0
        assert positions.max() == stack.max_position_embeddings - 1
        assert (np.diff(positions, axis=1) == 1).all()
        assert (positions[0] != positions[1]).all(), "one row's positions must not serve all"
    assert far.splits is not None
    assert len(far.splits) >= 3
    last = only("eoi-cached").bounds[-1]
    assert last[1] - last[0] == 2, "a call of one token and one of more, both with the id"
    assert (only("eoi-cached").decoder_input_ids[:, slice(*last)] == config.eoi_token_index).any()
    first, second = case(name, "second-source").runs
    assert first.input_ids.shape != second.input_ids.shape
    assert first.attention_mask is not None
    assert second.attention_mask is None, "a window that stands in the mask alone goes with it"
    for run in (first, second):
        assert run.splits is not None
        assert run.input_ids.shape[1] > encoder // 2 + 1, "past one side of the window"
        assert run.logits_to_keep is not None
        assert run.logits_to_keep < run.splits[0], "the first and the last positions are not the same"
    assert {first.logits_to_keep, second.logits_to_keep} == {1, 2}


def test_loss_decoder_ids_are_the_labels_shifted(name: str, config: Config) -> None:
    """The peer is given the labels alone, and has to come to these ids (D08)."""
    (run,) = case(name, "loss").runs
    assert run.labels is not None
    stack = config.decoder
    ours = shift_right(Numerics(), run.labels, stack.bos_token_id, stack.pad_token_id)
    assert np.array_equal(run.decoder_input_ids, ours)
    assert (run.labels == -100).any()
    assert (run.labels != -100).any(axis=1).all()


def test_regression_decoder_ids_are_the_encoder_ids_shifted(name: str, config: Config) -> None:
    """The peer is given the encoder ids alone, and has to come to these ids (D08)."""
    (run,) = case(name, "sequence-regression").runs
    stack = config.decoder
    ours = shift_right(Numerics(), run.input_ids, stack.bos_token_id, stack.pad_token_id)
    assert np.array_equal(run.decoder_input_ids, ours)
    assert (run.decoder_input_ids[:, 0] == stack.bos_token_id).all()


def test_only_two_cases_leave_the_decoder_ids_to_the_model(name: str) -> None:
    """Derived ids are not handed over, so that nothing else about the decoder's input may be given with them."""
    assert {c.name for c, run in runs(name) if run.derived} == {"loss", "sequence-regression"}
    for c, run in runs(name):
        if run.derived:
            assert "D08" in c.exposes, c.name
            assert run.decoder_attention_mask is run.decoder_position_ids is run.splits is None, c.name


def test_labels_fit_their_task(name: str, config: Config) -> None:
    shapes: dict[str, Any] = {
        "sequence-single": ((3,), "iu", {0, 1, 2}),
        "sequence-multi": ((3, 4), "f", {0.0, 1.0}),
        "sequence-regression": ((3,), "f", None),
        "token": ((3, 5), "iu", {-100, 0, 1, 2}),
    }
    for c, run in runs(name):
        if c.task == "lm":
            assert (run.labels is not None) == (c.name == "loss")
            continue
        shape, kind, values = shapes.pop(c.name)
        assert run.labels is not None
        assert (run.labels.shape, run.labels.dtype.kind in kind) == (shape, True), c.name
        assert values is None or set(np.unique(run.labels)) <= values, c.name
        if run.derived:
            assert "D64" not in c.exposes, "without padding the last position is the last token"
            continue
        mask = run.decoder_attention_mask
        assert mask is not None, "pooling the last position must differ from the last token"
        steps, last = np.diff(mask, axis=1), mask.shape[1] - 1
        if c.name == "sequence-multi":
            assert (steps >= 0).all(), "padded left"
            assert (mask.sum(axis=1) - 1 != last).any(), "counting the tokens must differ from the last one's place"
        else:
            assert (steps <= 0).all(), "padded right"
            assert not mask[:, last].all()
    assert not shapes


def test_head_is_seeded(config: Config) -> None:
    width = config.decoder.hidden_size
    for c in build(geometry("tiny")):
        head = c.head(width)
        assert bool(head) == (c.task != "lm")
        for key, value in head.items():
            same_bits(value, c.head(width)[key])
            assert value.dtype == np.float32
            assert np.all(value != 0)
            assert value.shape == ((c.num_labels, width) if key.endswith("weight") else (c.num_labels,))


def test_logits_are_cut_where_they_would_not_fit(name: str, config: Config) -> None:
    for c, run in runs(name):
        if c.name == "second-source" or c.costly:  # the last ones are what they ask for
            continue
        size = run.decoder_input_ids.size * config.decoder.vocab_size
        if run.logits_to_keep is None:
            longest = max(last - first for first, last in run.bounds)
            assert size // run.decoder_input_ids.shape[1] * longest <= LOGITS, c.name
        else:
            assert (run.logits_to_keep, size > LOGITS) == (16, True), c.name
            assert run.decoder_input_ids.shape[1] > 16, c.name
    assert all(run.logits_to_keep is None for c, run in runs("tiny") if c.name != "second-source" and not c.costly)


@pytest.mark.parametrize("window", [2, 3, 4, 5, 8, 9])
def test_small_windows(window: int) -> None:
    """Lengths follow the window down to two keys."""
    config = geometry("tiny")
    config = replace(
        config,
        encoder=replace(config.encoder, sliding_window=window),
        decoder=replace(config.decoder, sliding_window=window),
    )
    for c in build(config):
        for run in c.runs:
            lengths = [last - first for first, last in run.bounds]
            assert min(lengths) >= 1, c.name
            assert sum(lengths) == run.decoder_input_ids.shape[1], c.name
            for mask in (run.attention_mask, run.decoder_attention_mask):
                assert mask is None or mask.any(axis=1).all(), c.name


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ([], 25),
        (["short"], ["short"]),
        (["window*", "short"], ["short", "window"]),  # in the list's order, each once
        (["*image*", "image"], ["image", "images"]),
        (["SHORT"], []),
        (["nope"], []),
    ],
)
def test_select(patterns: list[str], names: Any) -> None:
    found = [c.name for c in select(built("tiny"), patterns)]
    assert found == names or len(found) == names
