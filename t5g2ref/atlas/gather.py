"""Runs the model on an input and keeps what the page shows: every tap in short, and what attention is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t5g2ref.atlas.attending import NEEDED
from t5g2ref.atlas.looking import Looked, looked
from t5g2ref.atlas.places import Places
from t5g2ref.atlas.seen import Seen, seen, sizes
from t5g2ref.config import TextConfig, VisionConfig
from t5g2ref.generate.options import Begun, Settings
from t5g2ref.generate.starts import start_of
from t5g2ref.generate.steps import Way, generated
from t5g2ref.model import Encoded, T5Gemma2
from t5g2ref.numerics import Array
from t5g2ref.taps import Tap, table
from t5g2ref.trace import Trace

LONGEST = 320  # tokens of a source: a picture of the released sizes takes 256
MOST_NEW = 32  # tokens of an answer
MOST_LAYERS = 12  # that are shown of a stack
MOST_LOOKED = 4  # layers of the tower whose attention is: each takes as long again as in the model
PHOTOS = 8  # pictures that are drawn
TOWER = "encoder.vision_tower.encoder.layers."


@dataclass(frozen=True)
class Gathered:
    """What one call showed.

    Args:
        model: that ran.
        ids: (S,) of the source.
        start, chosen: (T,) what the decoder was given, and what it chose at each position; None without a decoder.
        pixels: (I, C, side, side), or None.
        taps: those of the layers that are shown, in the order in which they came to be.
        kept: whole arrays, by tap.
        sizes: {tap of the residual stream: (tokens,) root mean squares}.
        looked: {layer of the tower: its attention}.
        logits: (T, V) or None.
        places: the code that was met.
    """

    model: T5Gemma2
    ids: Array
    start: Array | None
    chosen: Array | None
    pixels: Array | None
    taps: list[Seen]
    kept: dict[str, Array]
    sizes: dict[str, Array]
    looked: dict[int, Looked]
    logits: Array | None
    places: Places

    def layers(self, stack: str) -> list[int]:
        """The numbers of the layers of "encoder" or "decoder" that are shown."""
        return shown(self.model.config.decoder if stack == "decoder" else self.model.config.encoder)


def shown(part: TextConfig | VisionConfig) -> list[int]:
    """The layers that are shown: all, or so many spread evenly and the first of each type."""
    layers = part.num_hidden_layers
    types = part.layer_types if isinstance(part, TextConfig) else ()
    spread = {round(i) for i in np.linspace(0, layers - 1, min(layers, MOST_LAYERS))}
    return sorted(spread | {types.index(kind) for kind in set(types)})


def looked_at(part: VisionConfig) -> list[int]:
    """The tower's layers whose attention is shown, spread evenly over those that are shown."""
    layers = shown(part)
    return sorted({layers[round(i)] for i in np.linspace(0, len(layers) - 1, min(len(layers), MOST_LOOKED))})


def gather(model: T5Gemma2, ids: Any, pixels: Any = None, *, max_new_tokens: int = 16) -> Gathered:
    """Encode and watch; answer greedily; then decode that answer in one call and watch, which gives the same numbers.

    Args:
        ids: (1, S) of one source.
        pixels: (I, C, side, side), or None.

    Raises:
        ValueError: more tokens than a page has room for, or what the model refuses.
    """
    ids = np.asarray(ids)
    if ids.shape[1] > LONGEST:
        remedy = "shorten the prompt, or leave a picture out"
        raise ValueError(f"the source has {ids.shape[1]} tokens, expected at most {LONGEST} on a page; {remedy}")
    if not 1 <= max_new_tokens <= MOST_NEW:
        raise ValueError(f"--max-new-tokens: expected 1 to {MOST_NEW} on a page, found {max_new_tokens}")
    watch = Watch(model, images=pixels is not None)
    given = None if pixels is None else np.asarray(pixels)
    trace = Trace(watch)
    encoded = model.encode(ids, pixel_values=pixels, trace=trace)
    if not model.config.has_decoder:
        return watch.found(ids, given)
    answer = _answer(model, encoded, max_new_tokens)
    hidden, _ = model.decode(answer[:, :-1], model.start(encoded, trace), trace=trace)
    return watch.found(ids, given, answer[0], model.logits(hidden, trace)[0])


def _answer(model: T5Gemma2, encoded: Encoded, most: int) -> Array:
    """The greedy answer's ids (1, n), with the start in front, of what is encoded already: a tower takes its time."""
    settings = Settings(max_new_tokens=most)
    ends = settings.ends(model.config)
    way = Way(narrow=lambda logits: logits, pick=lambda logits: logits.argmax(axis=-1))
    return generated(model, Begun(model.start(encoded), start_of(model, 1), ends, settings.rules), way, None).ids


@dataclass
class Watch:
    """A sink that keeps what the page needs and hands on what it got."""

    model: T5Gemma2
    images: bool
    taps: list[Seen] = field(default_factory=list)
    kept: dict[str, Array] = field(default_factory=dict)
    sizes: dict[str, Array] = field(default_factory=dict)
    looked: dict[int, Looked] = field(default_factory=dict)
    places: Places = field(default_factory=Places)
    _queries: Any = None

    def __post_init__(self) -> None:
        self._table = {tap.name: tap for tap in table(self.model.config, images=self.images)}

    def __call__(self, name: str, value: Any) -> Any:
        tap = self._table[name]
        if tap.spine and not name.startswith(("lm_head", "logits")):
            self.sizes[name] = sizes(value)
        if self._hidden(tap):
            return value
        self.taps.append(seen(tap, value, self.places.calling()))
        if name.startswith(TOWER):
            self._look(name.removeprefix(TOWER), value)
        elif name.endswith(NEEDED):
            self.kept[name] = value
        return value

    def _look(self, name: str, value: Any) -> None:
        """A layer's attention, once its queries and keys are there."""
        layer, _, part = name.partition(".self_attn.")
        if not part or int(layer) not in looked_at(self.model.config.vision):
            return
        if part == "q_proj":
            self._queries = value
        if part == "k_proj":
            self.looked[int(layer)] = looked(self.model, self._queries, value, PHOTOS)

    def found(
        self, ids: Array, pixels: Array | None, answer: Array | None = None, logits: Array | None = None
    ) -> Gathered:
        """All that it saw, with what it was asked for."""
        start, chosen = (None, None) if answer is None else (answer[:-1], answer[1:])
        seen_of = (self.taps, self.kept, self.sizes, self.looked)
        return Gathered(self.model, ids[0], start, chosen, pixels, *seen_of, logits, self.places)

    def _hidden(self, tap: Tap) -> bool:
        """Whether it belongs to a layer that is left out."""
        stack, _, rest = tap.name.partition("layers.")
        if not rest:
            return False
        config = self.model.config
        text = config.decoder if stack.startswith("decoder") else config.encoder
        return int(rest.split(".")[0]) not in shown(config.vision if "vision" in stack else text)
