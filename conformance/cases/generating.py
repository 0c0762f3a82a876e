"""The cases of the generation lane: what a peer's own `generate` is asked for, without sampling.

Lengths follow the windows, as in the catalogue. A window too long to generate past is reached by a long start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.cases.case import Case
from conformance.cases.ingredients import Kit
from conformance.cases.prompt import GENERATE, Prompt
from t5g2ref.config import Config

SEED = 20261127  # of the inputs that are judged
MOST = 24  # ids that a row is asked for; behind a long start a few are enough
BEAMS = 3
LONG = 4096  # a window of as many keeps one key fewer beside the new one
TYPE = "float32"  # in half types too few choices are certain


def _sources(k: Kit, lengths: list[int], side: str = "left") -> dict[str, Any]:
    ids, mask = k.padded(lengths, side)
    return {"input_ids": ids, "attention_mask": mask}


def _own(k: Kit) -> tuple[int, ...]:
    """The ids at which the checkpoint itself says that a row ends."""
    return tuple(k.config.decoder.eos_token_id)


def _far(k: Kit) -> list[int]:
    """Lengths of three sources, the first past every window."""
    w = max(k.config.encoder.sliding_window, k.config.decoder.sliding_window)
    return [w + w // 2 + 2, 5, w // 2 + 1]


def _greedy(k: Kit) -> Case:
    v = k.config.decoder.sliding_window
    source = _sources(k, _far(k))
    if v + 4 <= MOST:
        prompt = Prompt(**source, new=v + 4, stop=_own(k))
    else:
        prompt = Prompt(**source, new=8, start=k.ids(3, v - 4), stop=_own(k))
    title = "ragged sources past every window, answers past the decoder's"
    return _case("", title, "D28 D36 D38 D39", prompt)


def _second(k: Kit) -> Case:
    """Two sources of one shape: what is kept of the first fits the second, and nothing raises."""
    lengths = [9, 4]
    first = Prompt(**_sources(k, lengths), new=4, stop=_own(k))
    second = Prompt(**_sources(k, lengths), new=5, start=k.ids(2, 3), stop=_own(k))
    return _case("-second", "another source on the same objects, from a start of three ids", "D55", first, second)


def _stop(k: Kit) -> Case:
    """A quarter of all ids ends a row, so that rows end in a few steps, and not together."""
    c = k.config.decoder
    stop = tuple(int(i) for i in np.arange(c.vocab_size)[1::4] if i not in (c.pad_token_id, c.bos_token_id))
    prompt = Prompt(**_sources(k, [7, 12, 5, 9], "right"), new=10, stop=stop)
    return _case("-stop", "rows that end at unlike steps, padded right", "D38 D39", prompt)


def _beams(k: Kit) -> Case:
    prompt = Prompt(**_sources(k, _far(k)[:2]), new=6, beams=BEAMS)
    return _case("-beams", "beams over ragged sources past every window", "D36", prompt)


def _images(k: Kit) -> Case:
    two, one = k.image_row(4, 2), k.image_row(4, 1)
    ids = np.full((2, two.shape[1]), k.config.decoder.pad_token_id)
    ids[0], ids[1, -one.shape[1] :] = two[0], one[0]
    mask = np.ones(ids.shape, np.int64)
    mask[1, : -one.shape[1]] = 0
    prompt = Prompt(ids, 4, mask, k.pixels(3), beams=BEAMS)
    return _case("-images", "beams over two pictures in one row, one in the next", "D78", prompt)


def _case(name: str, title: str, exposes: str, *prompts: Prompt) -> Case:
    return Case(GENERATE + name, title, (), exposes=tuple(exposes.split()), types=(TYPE,), prompts=prompts)


def _long(k: Kit) -> Case:
    """A source that the usual default of a window cuts: it stands in for the checkpoint's where that is not read."""
    prompt = Prompt(k.ids(1, LONG), 3, stop=_own(k))
    title = f"a source of {LONG} tokens, which a default window of as many would cut"
    return replace(_case("-long", title, "D36", prompt), costly=True)


_BUILDERS: tuple[Callable[[Kit], Case], ...] = (_greedy, _second, _stop, _beams, _images, _long)


def build(config: Config) -> list[Case]:
    """Every case of the lane that this geometry's parts can run; none for an encoder alone."""
    if not config.has_decoder:
        return []
    made = [builder(Kit(config, np.random.default_rng([SEED, i]))) for i, builder in enumerate(_BUILDERS)]
    return [case for case in made if config.has_vision or all(p.pixel_values is None for p in case.prompts)]
