"""The cases: inputs that make each branch of the model bite, and the defects that each exposes.

A case is made for a geometry: its lengths follow the windows of the checkpoint under test. So one list judges a tiny
checkpoint and a released one. A seed draws the inputs, the same in every run.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.cases.case import Case, Run
from conformance.cases.ingredients import Kit
from conformance.cases.rows import alone, masked_steps, rows_as_heads
from t5g2ref.config import Config, TextConfig

Array = np.ndarray[Any, Any]


SEED = 20251212  # of the inputs that are judged


QUICK = ("short", "window", "padded-left-cached", "decoder-split", "eoi-cached", "images")
"""Cases for somebody who edits and runs: what they cannot see is printed, as always."""

SEEING = ("image", "images")
ENCODING = ("short", "window", "padded-right", "padded-left", "eoi", "image", "images", "far-positions")
"""Cases whose sources show what an encoder does; the others are about the decoder."""


def _ids(defects: str) -> tuple[str, ...]:
    return tuple(defects.split())


DECODING = _ids(
    "D07 D08 D16 D18 D24 D25 D28 D29 D34 D36 D37 D39 D42 D43 D44 D50 D54 D55 D56 D57 D64 D65 D71 D74 D75 D76 D81"
)
"""Defects of a decoder, of what stands behind it, or of two stacks that are not alike."""


def _short(k: Kit) -> Case:
    run = Run(k.ids(1, 5), k.ids(1, 4))
    exposes = _ids("D01 D03 D07 D09 D10 D14 D15 D16 D17 D18 D24 D25 D26 D43 D44 D45 D46 D47 D48 D52 D53 D71")
    return Case("short", "five tokens to four", (run,), exposes=exposes)


def _window(k: Kit) -> Case:
    w = k.config.encoder.sliding_window
    run = Run(k.ids(1, 2 * w + 3), k.ids(1, 6))
    exposes = _ids("D19 D20 D21 D22 D23 D27 D30 D31 D32 D33 D35 D37 D67 D68 D69 D71 D85")
    return Case("window", "encoder past its window, no padding", (run,), exposes=exposes)


def _padded(side: str) -> Callable[[Kit], Case]:
    def make(k: Kit) -> Case:
        w, v = k.config.encoder.sliding_window, k.config.decoder.sliding_window
        ids, mask = k.padded([w + 5, 3, w // 2 + 1], side)
        decoder_ids, decoder_mask = k.padded([4, v + 3, 2], side)
        keep = k.keep(decoder_ids.size)
        run = Run(ids, decoder_ids, mask, decoder_attention_mask=decoder_mask, logits_to_keep=keep)
        exposes = _ids(
            "D38 D39 D40 D41 D70" + (" D29 D42 D72" if side == "left" else "")
        )  # on the right it shifts nothing,
        # and no causal row sees what comes behind it
        return Case(f"padded-{side}", f"ragged batch of three, padded {side}", (run,), exposes=exposes)

    return make


def _padded_cached(k: Kit) -> Case:
    """Ordinary batched generation: padding on the left of both stacks, under a cache."""
    ids, mask = k.padded([8, 3, 6], "left")
    decoder_ids, decoder_mask = k.padded([7, 3, 5], "left")
    run = Run(ids, decoder_ids, mask, decoder_attention_mask=decoder_mask, splits=(4, 1, 2))
    exposes = _ids("D28 D29 D38 D39 D42 D70 D72 D74 D75")
    return Case("padded-left-cached", "ragged batch padded left, cached decoding", (run,), exposes=exposes)


def _cross_cached(k: Kit) -> Case:
    w = max(k.config.encoder.sliding_window, k.config.decoder.sliding_window)
    run = Run(k.ids(2, w + w // 2 + 2), k.ids(2, 5), splits=(2, 1, 1, 1))
    return Case("cross-cached", "encoder longer than every window, cached decoding", (run,), exposes=("D28", "D36"))


def _past_window(
    splits: Callable[[int], tuple[int, ...]], name: str, title: str, exposes: str
) -> Callable[[Kit], Case]:
    def make(k: Kit) -> Case:
        w = k.config.decoder.sliding_window
        lengths = splits(w)
        ids = k.ids(1, w + 4)
        splits_ = None if len(lengths) == 1 else lengths
        run = Run(k.ids(1, 7), ids, splits=splits_, logits_to_keep=k.keep(ids.size))
        return Case(name, title, (run,), exposes=_ids(exposes))

    return make


def _long_rows(k: Kit) -> Case:
    """Past 64, 128, 256 and 1024 keys in the encoder and in the cross half, and a multiple of none. Then a short row
    beside a long one, padded left: its first tiles and windows are all padding."""
    long = Run(k.ids(1, 1030), k.ids(1, 3), logits_to_keep=2)
    ids, mask = k.padded([134, 5], "left")
    decoder_ids, decoder_mask = k.padded([70, 3], "left")
    ragged = Run(ids, decoder_ids, mask, decoder_attention_mask=decoder_mask, logits_to_keep=2)
    title = "1030 tokens to 3, then a short row beside a long one"
    return Case(
        "long-rows", title, (long, ragged), exposes=("D32", "D38", "D73", "D79"), costly=True, types=("float32",)
    )


def _long_answer(k: Kit) -> Case:
    """In the half types the one case with long rows: past 1024 keys in the decoder, past 256 in the encoder."""
    run = Run(k.ids(1, 262), k.ids(1, 1030), logits_to_keep=2)
    title = "262 tokens to 1030, past tiles of 256 and 1024"
    return Case("long-answer", title, (run,), exposes=("D34", "D79"), costly=True)


def _eoi(k: Kit) -> Case:
    ids, decoder_ids = k.ids(2, 9), k.ids(2, 6)
    ids[0, 3] = ids[1, 8] = k.config.eoi_token_index
    decoder_ids[0, 2] = decoder_ids[1, 4] = k.config.eoi_token_index
    return Case("eoi", "end-of-image id in encoder and decoder", (Run(ids, decoder_ids),), exposes=("D05", "D06"))


def _eoi_cached(k: Kit) -> Case:
    ids, decoder_ids = k.ids(2, 9), k.ids(2, 6)
    ids[0, 3] = decoder_ids[0, 2] = decoder_ids[1, 4] = k.config.eoi_token_index
    run = Run(ids, decoder_ids, splits=(2, 1, 1, 2))  # the id alone in a call, then beside another
    return Case("eoi-cached", "end-of-image id in a cached decoder step", (run,), exposes=("D05", "D28", "D74"))


_IMAGE = _ids("D04 D05 D06 D59 D60 D62")


def _image(k: Kit) -> Case:
    run = Run(k.image_row(4, 1), k.ids(1, 5), pixel_values=k.pixels(1), splits=(3, 1, 1))
    return Case("image", "one picture between words, cached decoding", (run,), exposes=_IMAGE)


def _images(k: Kit) -> Case:
    long, short = k.image_row(4, 2), k.image_row(4, 1)[:, 5:]  # a placeholder is the first of all
    long[0, 1] = 0  # as in every padded row: a token like any other
    ids = np.full((2, long.shape[1]), k.config.decoder.pad_token_id)
    ids[0], ids[1, : short.shape[1]] = long[0], short[0]
    mask = np.ones(ids.shape, np.int64)
    mask[1, short.shape[1] :] = 0
    run = Run(ids, k.ids(2, 4), attention_mask=mask, pixel_values=k.pixels(3))
    return Case("images", "two pictures in one row, one in the next", (run,), exposes=(*_IMAGE, "D61", "D70"))


def _far(k: Kit) -> Case:
    enc, dec, s, t = k.config.encoder, k.config.decoder, 2 * k.config.encoder.sliding_window, 8
    rows, columns = np.array([[0], [5]]), np.arange(s)  # the rows differ: one row's positions must not serve all
    run = Run(
        k.ids(2, s),
        k.ids(2, t),
        position_ids=enc.max_position_embeddings - s - rows + columns,
        decoder_position_ids=dec.max_position_embeddings - t - rows + columns[:t],
        splits=(t - 3, 2, 1),
    )
    exposes = _ids("D19 D20 D21 D22 D23 D27 D28")
    return Case("far-positions", "position_ids to the last, by row, cached", (run,), exposes=exposes)


def _equal(k: Kit) -> Case:
    run = Run(k.ids(2, 8), k.ids(2, 8))
    return Case("equal-lengths", "encoder and decoder of one length", (run,), exposes=("D43",))


def _second_source(k: Kit) -> Case:
    """A padded source, then one without a mask, both past one side of the window; logits of the last positions."""
    n = k.config.encoder.sliding_window // 2 + 3
    ids, mask = k.padded([n, n - 2], "right")
    padded = Run(ids, k.ids(2, 5), mask, splits=(3, 2), logits_to_keep=2)
    unpadded = Run(k.ids(2, n + 3), k.ids(2, 4), splits=(3, 1), logits_to_keep=1)
    exposes = _ids("D32 D38 D39 D55 D69 D70 D74 D81")
    return Case("second-source", "another source on the same objects, last logits", (padded, unpadded), exposes=exposes)


def _loss(k: Kit) -> Case:
    c = k.config.decoder
    labels = k.ids(3, 7)
    labels[1, 4:] = labels[2, 2:] = -100
    run = Run(k.ids(3, 6), _shifted(labels, c), labels=labels, derived=True)
    return Case("loss", "language-model loss, labels with -100", (run,), exposes=("D08", "D65"))


def _shifted(ids: Array, config: TextConfig) -> Array:
    """What a model makes of labels or encoder ids when it is given no decoder ids; written apart from ours."""
    shifted = np.concatenate([np.full((len(ids), 1), config.bos_token_id), ids[:, :-1]], axis=1)
    return np.where(shifted == -100, config.pad_token_id, shifted)


def _classifier(
    name: str, title: str, task: str, labels: Callable[[Kit, int], Array], n: int, side: str = "right"
) -> Callable[..., Case]:
    """`side` is the decoder's padding, or "none" for decoder ids that the model makes from the encoder's."""

    def make(k: Kit) -> Case:
        ids = k.ids(3, 6)
        if side == "none":
            run = Run(ids, _shifted(ids, k.config.decoder), labels=labels(k, n), derived=True)
        else:
            decoder_ids, mask = k.padded([5, 3, 4], side)
            run = Run(ids, decoder_ids, decoder_attention_mask=mask, labels=labels(k, n))
        pooled = ("D64",) if task == "sequence" else ("D65",)
        exposes = ("D08",) if side == "none" else pooled
        return Case(name, title, (run,), task=task, num_labels=n, exposes=exposes)

    return make


def _token_labels(k: Kit, n: int) -> Array:
    labels = k.rng.integers(0, n, (3, 5))
    labels[1, 3:] = labels[2, 4:] = -100
    return labels


_BUILDERS: tuple[Callable[[Kit], Case], ...] = (
    _short,
    _window,
    _padded("right"),
    _padded("left"),
    _padded_cached,
    _cross_cached,
    _past_window(lambda w: (w + 4,), "decoder-window", "decoder past its window in one call", "D34 D69 D71"),
    _past_window(
        lambda w: (max(1, w - 4), *[1] * min(8, w + 3)),
        "decoder-steps",
        "decoder past its window, stepwise",
        "D28 D34 D54 D56 D57 D69",
    ),
    _past_window(
        lambda w: (w - 1, 3, 2), "decoder-split", "decoder calls split around the window", "D28 D34 D54 D56 D74"
    ),
    _eoi,
    _eoi_cached,
    _image,
    _images,
    _far,
    _equal,
    _second_source,
    _loss,
    _classifier("sequence-single", "sequence classes", "sequence", lambda k, n: k.rng.integers(0, n, 3), 3),
    _classifier(
        "sequence-multi", "several labels", "sequence", lambda k, n: k.rng.random((3, n)).round() + 0.0, 4, "left"
    ),
    _classifier("sequence-regression", "one number", "sequence", lambda k, _: k.rng.normal(size=3), 1, "none"),
    _classifier("token", "a class per decoder token", "token", _token_labels, 3),
    _long_rows,
    _long_answer,
    masked_steps,
    rows_as_heads,
)


def build_rows(config: Config) -> list[Case]:
    """Every case, with batches given a row at a time; of another name where there is a batch."""
    return [alone(case, config.image_token_index) for case in build(config)]


def build(config: Config, seed: int = SEED) -> list[Case]:
    """Every case that this geometry's parts can run; another seed draws other inputs of the same lengths."""
    cases = []
    for index, builder in enumerate(_BUILDERS):
        cases.append(builder(Kit(config, np.random.default_rng([seed, index]))))
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), names
    if not config.has_vision:
        cases = [case for case in cases if case.name not in SEEING]
    if config.has_decoder:
        return cases
    return [replace(c.of_encoder(), exposes=_seen_in_encoder(c)) for c in cases if c.name in ENCODING]


def _seen_in_encoder(case: Case) -> tuple[str, ...]:
    return tuple(defect for defect in case.exposes if defect not in DECODING)


def select(cases: list[Case], patterns: list[str]) -> list[Case]:
    """Cases whose name matches any of the shell patterns, in their own order; all when there is none."""
    return [c for c in cases if not patterns or any(fnmatch.fnmatchcase(c.name, p) for p in patterns)]
