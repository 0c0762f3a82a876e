"""The cases: inputs that make each branch of the model bite, and the defects (ids of the catalogue) they expose.

A case is made for a geometry: lengths follow the windows of the checkpoint under test, so the same list judges a
tiny checkpoint and a released one. Inputs are drawn from a generator seeded by the case's name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from t5g2ref.config import Config, TextConfig
from t5g2ref.numerics import HALF, to_grid

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Run:
    """One source through encoder and decoder.

    Args:
        input_ids, attention_mask, position_ids: (B, S); pixel_values (I, C, side, side) float32.
        decoder_input_ids, decoder_attention_mask, decoder_position_ids: (B, T).
        labels: for a loss; (B, T), (B,) or (B, labels). In a language model's run the decoder ids are these shifted
            right, which is what a peer has to make of them.
        splits: lengths of the cached decoder calls, summing to T; None for one call without a cache.
        derived: the decoder ids are what the model makes itself, from labels or encoder ids, and are not handed over.
        logits_to_keep: only the last so many positions of a call get logits; None for all. A vocabulary of 262144
            times 500 positions is 1 GB in float64, and says no more than 16 positions do.
    """

    input_ids: Array
    decoder_input_ids: Array
    attention_mask: Array | None = None
    position_ids: Array | None = None
    pixel_values: Array | None = None
    decoder_attention_mask: Array | None = None
    decoder_position_ids: Array | None = None
    labels: Array | None = None
    splits: tuple[int, ...] | None = None
    derived: bool = False
    logits_to_keep: int | None = None

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First and last + 1 decoder position of each call."""
        lengths = self.splits or (self.decoder_input_ids.shape[1],)
        ends = np.cumsum(lengths)
        return [(int(end - n), int(end)) for end, n in zip(ends, lengths, strict=True)]

    @property
    def encoder_valid(self) -> Array:
        mask = self.attention_mask
        return np.ones(self.input_ids.shape, bool) if mask is None else mask.astype(bool)

    @property
    def decoder_valid(self) -> Array:
        mask = self.decoder_attention_mask
        return np.ones(self.decoder_input_ids.shape, bool) if mask is None else mask.astype(bool)


@dataclass(frozen=True)
class Case:
    """Runs made one after the other on the same peer object.

    Args:
        task: "lm", "sequence" or "token"; the classifiers get seeded `score` weights.
        exposes: ids of the defects that this case can show, given a geometry in which they matter.
    """

    name: str
    title: str
    runs: tuple[Run, ...]
    task: str = "lm"
    num_labels: int = 3
    exposes: tuple[str, ...] = ()

    @cached_property
    def calls(self) -> list[tuple[Run, tuple[int, int]]]:
        """Every call of the case in order: its run, and its first and last + 1 decoder position."""
        return [(run, bounds) for run in self.runs for bounds in run.bounds]

    def head(self, width: int) -> dict[str, Array]:
        """Seeded `score.out_proj` weights (labels, width) for a classifier over a language model's checkpoint."""
        if self.task == "lm":
            return {}
        rng = np.random.default_rng([20251212, self.num_labels])
        weight, bias = (
            rng.normal(0, width**-0.5, (self.num_labels, width)),
            rng.normal(0, 0.5, self.num_labels),
        )
        return {
            "score.out_proj.weight": to_grid(weight, "bfloat16"),
            "score.out_proj.bias": to_grid(bias, "bfloat16"),
        }

    def copied(self) -> Case:
        """The case with arrays of its own, for a peer to do with as it likes: the truth is computed from ours."""

        def copied(run: Run) -> Run:
            given = {f.name: getattr(run, f.name) for f in fields(run)}
            own: dict[str, Any] = {name: v.copy() for name, v in given.items() if isinstance(v, np.ndarray)}
            return replace(run, **own)

        return replace(self, runs=tuple(copied(run) for run in self.runs))

    def given(self, dtype: str) -> Case:
        """The case as a model in `dtype` is given it: pictures are numbers of that type, so that what their rounding
        costs is nobody's error."""
        if dtype not in HALF or all(run.pixel_values is None for run in self.runs):
            return self
        runs = [
            run if (p := run.pixel_values) is None else replace(run, pixel_values=to_grid(p, dtype))
            for run in self.runs
        ]
        return replace(self, runs=tuple(runs))


SEED = 20251212  # of the inputs that are judged
LOGITS = 1 << 24  # more than so many in one call, and only the last 16 positions get theirs


@dataclass(frozen=True)
class _Kit:
    """Draws inputs for one case on one geometry."""

    config: Config
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def ids(self, batch: int, length: int) -> Array:
        """Ordinary tokens behind a bos: (batch, length) without any special id."""
        c = self.config
        special = {c.boi_token_index, c.eoi_token_index, c.image_token_index, c.decoder.pad_token_id}
        special |= {c.decoder.bos_token_id, *c.decoder.eos_token_id}
        ordinary = np.delete(np.arange(c.decoder.vocab_size), list(special))
        ids = self.rng.choice(ordinary, size=(batch, length))
        ids[:, 0] = c.decoder.bos_token_id
        return ids.astype(np.int64)

    def padded(self, lengths: list[int], side: str) -> tuple[Array, Array]:
        """Ragged rows padded on one side: ids and mask, both (batch, longest)."""
        ids, mask = self.ids(len(lengths), max(lengths)), np.zeros((len(lengths), max(lengths)), np.int64)
        for row, n in enumerate(lengths):
            kept = slice(0, n) if side == "right" else slice(max(lengths) - n, None)
            mask[row, kept] = 1
            ids[row, kept.start] = self.config.decoder.bos_token_id
        return np.where(mask == 1, ids, self.config.decoder.pad_token_id), mask

    def keep(self, decoder_ids: Array) -> int | None:
        """`logits_to_keep` for these decoder ids."""
        return 16 if decoder_ids.size * self.config.decoder.vocab_size > LOGITS else None

    def pixels(self, images: int) -> Array:
        """Pictures unlike their own mirror and transpose: a slanted ramp under noise, float32 in [-1, 1]."""
        v = self.config.vision
        y, x = np.mgrid[0 : v.image_size, 0 : v.image_size] / v.image_size
        ramp = 0.7 * x + 0.3 * y**2 - 0.5
        noise = self.rng.integers(0, 256, (images, v.num_channels, v.image_size, v.image_size)) / 255.0 - 0.5
        return np.asarray(np.clip(ramp + noise, -1, 1), np.float32)

    def image_row(self, words: int, images: int) -> Array:
        """One row (1, S): words, then per image boi, image tokens, eoi, then words."""
        c = self.config
        block = [c.boi_token_index, *[c.image_token_index] * c.mm_tokens_per_image, c.eoi_token_index]
        parts = [self.ids(1, words)[0]]
        for _ in range(images):
            parts += [np.array(block), self.ids(1, words)[0][1:]]
        return np.concatenate(parts)[None].astype(np.int64)


def _ids(defects: str) -> tuple[str, ...]:
    return tuple(defects.split())


def _short(k: _Kit) -> Case:
    run = Run(k.ids(1, 5), k.ids(1, 4))
    exposes = _ids("D01 D03 D07 D09 D10 D14 D15 D16 D17 D18 D24 D25 D26 D43 D44 D45 D46 D47 D48 D52 D53")
    return Case("short", "five tokens to four", (run,), exposes=exposes)


def _window(k: _Kit) -> Case:
    w = k.config.encoder.sliding_window
    run = Run(k.ids(1, 2 * w + 3), k.ids(1, 6))
    exposes = _ids("D19 D20 D21 D22 D23 D27 D30 D31 D32 D33 D35 D37")
    return Case("window", "encoder past its window, no padding", (run,), exposes=exposes)


def _padded(side: str) -> Callable[[_Kit], Case]:
    def make(k: _Kit) -> Case:
        w, v = k.config.encoder.sliding_window, k.config.decoder.sliding_window
        ids, mask = k.padded([w + 5, 3, w // 2 + 1], side)
        decoder_ids, decoder_mask = k.padded([4, v + 3, 2], side)
        keep = k.keep(decoder_ids)
        run = Run(ids, decoder_ids, mask, decoder_attention_mask=decoder_mask, logits_to_keep=keep)
        exposes = _ids("D38 D39 D40 D41" + (" D29 D42" if side == "left" else ""))  # on the right it shifts nothing,
        # and no causal row sees what comes behind it
        return Case(f"padded-{side}", f"ragged batch of three, padded {side}", (run,), exposes=exposes)

    return make


def _padded_cached(k: _Kit) -> Case:
    """Ordinary batched generation: padding on the left of both stacks, under a cache."""
    ids, mask = k.padded([8, 3, 6], "left")
    decoder_ids, decoder_mask = k.padded([7, 3, 5], "left")
    run = Run(ids, decoder_ids, mask, decoder_attention_mask=decoder_mask, splits=(4, 1, 2))
    exposes = _ids("D28 D29 D38 D39 D42")
    return Case("padded-left-cached", "ragged batch padded left, cached decoding", (run,), exposes=exposes)


def _cross_cached(k: _Kit) -> Case:
    w = max(k.config.encoder.sliding_window, k.config.decoder.sliding_window)
    run = Run(k.ids(2, w + w // 2 + 2), k.ids(2, 5), splits=(2, 1, 1, 1))
    return Case("cross-cached", "encoder longer than every window, cached decoding", (run,), exposes=("D28", "D36"))


def _past_window(splits: Callable[[int], tuple[int, ...]], name: str, title: str) -> Callable[[_Kit], Case]:
    def make(k: _Kit) -> Case:
        w = k.config.decoder.sliding_window
        lengths = splits(w)
        ids = k.ids(1, w + 4)
        splits_ = None if len(lengths) == 1 else lengths
        run = Run(k.ids(1, 7), ids, splits=splits_, logits_to_keep=k.keep(ids))
        cached = ("D28", "D54", "D56") if splits_ else ()
        return Case(name, title, (run,), exposes=("D34", *cached))

    return make


def _eoi(k: _Kit) -> Case:
    ids, decoder_ids = k.ids(2, 9), k.ids(2, 6)
    ids[0, 3] = ids[1, 8] = k.config.eoi_token_index
    decoder_ids[0, 2] = decoder_ids[1, 4] = k.config.eoi_token_index
    return Case("eoi", "end-of-image id in encoder and decoder", (Run(ids, decoder_ids),), exposes=("D05", "D06"))


def _eoi_cached(k: _Kit) -> Case:
    ids, decoder_ids = k.ids(2, 9), k.ids(2, 6)
    ids[0, 3] = decoder_ids[0, 2] = decoder_ids[1, 4] = k.config.eoi_token_index
    run = Run(ids, decoder_ids, splits=(2, 1, 1, 1, 1))
    return Case("eoi-cached", "end-of-image id in a cached decoder step", (run,), exposes=("D05", "D28"))


_IMAGE = _ids("D04 D05 D06 D59 D60 D62")


def _image(k: _Kit) -> Case:
    run = Run(k.image_row(4, 1), k.ids(1, 5), pixel_values=k.pixels(1), splits=(3, 1, 1))
    return Case("image", "one picture between words, cached decoding", (run,), exposes=_IMAGE)


def _images(k: _Kit) -> Case:
    long, short = k.image_row(4, 2), k.image_row(4, 1)
    ids = np.full((2, long.shape[1]), k.config.decoder.pad_token_id)
    ids[0], ids[1, : short.shape[1]] = long[0], short[0]
    mask = np.ones(ids.shape, np.int64)
    mask[1, short.shape[1] :] = 0
    run = Run(ids, k.ids(2, 4), attention_mask=mask, pixel_values=k.pixels(3))
    return Case("images", "two pictures in one row, one in the next", (run,), exposes=(*_IMAGE, "D61"))


def _far(k: _Kit) -> Case:
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


def _equal(k: _Kit) -> Case:
    run = Run(k.ids(2, 8), k.ids(2, 8))
    return Case("equal-lengths", "encoder and decoder of one length", (run,), exposes=("D43",))


def _second_source(k: _Kit) -> Case:
    runs = (Run(k.ids(1, 6), k.ids(1, 4), splits=(2, 2)), Run(k.ids(1, 9), k.ids(1, 4), splits=(3, 1)))
    return Case("second-source", "another source on the same objects", runs, exposes=("D55",))


def _loss(k: _Kit) -> Case:
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
    name: str, title: str, task: str, labels: Callable[[_Kit, int], Array], n: int, side: str = "right"
) -> Callable[..., Case]:
    """`side` is the decoder's padding, or "none" for decoder ids that the model makes from the encoder's."""

    def make(k: _Kit) -> Case:
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


def _token_labels(k: _Kit, n: int) -> Array:
    labels = k.rng.integers(0, n, (3, 5))
    labels[1, 3:] = labels[2, 4:] = -100
    return labels


_BUILDERS: tuple[Callable[[_Kit], Case], ...] = (
    _short,
    _window,
    _padded("right"),
    _padded("left"),
    _padded_cached,
    _cross_cached,
    _past_window(lambda w: (w + 4,), "decoder-window", "decoder past its window in one call"),
    _past_window(lambda w: (max(1, w - 4), *[1] * min(8, w + 3)), "decoder-steps", "decoder past its window, stepwise"),
    _past_window(lambda w: (w - 1, 3, 2), "decoder-split", "decoder calls split around the window"),
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
)


def build(config: Config, seed: int = SEED) -> list[Case]:
    """Every case, for this geometry; another seed draws other inputs of the same lengths."""
    cases = []
    for index, builder in enumerate(_BUILDERS):
        cases.append(builder(_Kit(config, np.random.default_rng([seed, index]))))
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), names
    return cases


def select(cases: list[Case], patterns: list[str]) -> list[Case]:
    """Cases whose name matches any of the shell patterns, in their own order; all when there is none."""
    return [c for c in cases if not patterns or any(fnmatch.fnmatchcase(c.name, p) for p in patterns)]
