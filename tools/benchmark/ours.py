"""Our side of the benchmark, and the inputs of all sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmark.counts import Lengths
from benchmark.timing import Work
from t5g2ref import vision
from t5g2ref.backend import Backend
from t5g2ref.config import Config
from t5g2ref.dtypes import DType
from t5g2ref.embedding import embed_scale
from t5g2ref.model import Cache, T5Gemma2
from t5g2ref.numerics import EXACT, SDPA, Numerics
from t5g2ref.one_step import whole_steps
from t5g2ref.params import tree
from t5g2ref.rope import rope_tables

Array = Any


@dataclass(frozen=True)
class Inputs:
    """What all sides are given, on the host: ids int64 (B, T), pixels float32 (B, C, side, side). Nothing is padded.

    Args:
        source, target: of `encode` and `forward`.
        warm, steps: decoder ids in the cache, and those that all sides decode when they are held against each other.
        mixed: the truth's source, text and one image; one row.
    """

    source: Array
    target: Array
    warm: Array
    steps: Array
    mixed: Array
    pixels: Array

    @staticmethod
    def draw(config: Config, lengths: Lengths) -> Inputs:
        """Random text and a random image, the same on every run."""
        rng, v, batch = np.random.default_rng(512), config.vision, lengths.batch
        image = [config.image_token_index] * config.mm_tokens_per_image
        image = [config.boi_token_index, *image, config.eoi_token_index]
        return Inputs(
            source=_text(rng, config, batch, lengths.source),
            target=_text(rng, config, batch, lengths.target),
            warm=_text(rng, config, batch, lengths.warm),
            steps=_text(rng, config, batch, lengths.steps + 1)[:, 1:],
            mixed=np.concatenate([_text(rng, config, 1, lengths.source), [image]], axis=1),
            pixels=rng.uniform(-1, 1, (batch, v.num_channels, v.image_size, v.image_size)).astype(np.float32),
        )


def _text(rng: np.random.Generator, config: Config, batch: int, length: int) -> Array:
    """bos and ordinary tokens, (batch, length): no id that means an image or padding."""
    stack = config.decoder
    special = [config.boi_token_index, config.eoi_token_index, config.image_token_index]
    special += [stack.pad_token_id, stack.bos_token_id, *stack.eos_token_id]
    ids = rng.choice(np.delete(np.arange(stack.vocab_size), special), (batch, length))
    ids[:, 0] = stack.bos_token_id
    return ids.astype(np.int64)


class Ours:
    """T5Gemma2 on one backend in one dtype."""

    def __init__(self, config: Config, weights: Mapping[str, Any], dtype: DType, backend: Backend) -> None:
        nx = Numerics(dtype, SDPA, backend)
        with nx.scope():
            arrays = {name: nx.array(value) for name, value in weights.items()}
        self.name, self.weight_bytes = backend.name, sum(int(array.nbytes) for array in arrays.values())
        self._model = T5Gemma2(config, tree(arrays), nx)
        self._ids: dict[str, Array] = {}
        self._pixels: Array = None

    def close(self) -> None:
        """The weights go when nobody holds this."""

    def given(self, inputs: Inputs) -> None:
        """Put what the items are run on where the weights are."""
        nx = self._model.nx
        with nx.scope():
            self._ids = {name: nx.xp.asarray(getattr(inputs, name)) for name in ("source", "target", "warm", "steps")}
            self._pixels = nx.array(inputs.pixels)

    def work(self, item: str) -> Work:
        if item == "decode":
            warm = self._warm()
            return Work(
                run=lambda _: self._decode(warm),
                sample=self._host,
                check=lambda _: self._decode(warm, self._ids["steps"]),
            )
        run = {"encode": self._encode, "forward": self._forward, "vision": self._vision}[item]
        return Work(lambda _: run(), self._host)

    def exact_products(self) -> bool:
        """Whether (1 + 2⁻²⁰) · 1 stays what it is, which TF32 would round to 1; only asked in float32."""
        nx = self._model.nx
        with nx.scope():
            x = nx.xp.full((256, 256), 1 + 2.0**-20, dtype="float32")
            return bool((nx.matmul(x, nx.xp.eye(256, dtype="float32")) == x).all())

    def _host(self, x: Array) -> np.ndarray[Any, Any]:
        return self._model.nx.backend.host(x).astype(np.float64)

    def _encode(self) -> Array:
        return self._model.encode(self._ids["source"]).hidden

    def _forward(self) -> Array:
        return self._model(self._ids["source"], self._ids["target"]).logits

    def _vision(self) -> Array:
        model = self._model
        with model.nx.scope():
            return vision.image_features(model.nx, model.weights.encoder, model.config, self._pixels)

    def _warm(self) -> Cache:
        return self._model.decode(self._ids["warm"], self._model.start(self._model.encode(self._ids["source"])))[1]

    def _decode(self, cache: Cache, forced: Array | None = None) -> Array:
        """Steps from the warm cache, each with logits and the argmax; its ids, or the forced ones, go in next. The
        last logits."""
        model, nx = self._model, self._model.nx
        with nx.scope():
            new = self._ids["steps"][:, :1]
            whole = None if forced is not None else self._whole(cache, new[:, 0])
            if whole is not None:
                return whole
            for step in range(self._ids["steps"].shape[1]):
                given = new if forced is None else forced[:, step : step + 1]
                hidden, cache = model.decode(given, cache)
                logits = model.logits(hidden[:, -1:])
                new = nx.wide(logits[:, -1]).argmax(axis=-1)[:, None]  # not every library reduces half types
            return logits

    def _whole(self, cache: Cache, first: Array) -> Array | None:
        """The same by a backend that makes many ids without the host; None where it does not."""
        model, nx, count = self._model, self._model.nx, self._ids["steps"].shape[1]
        config, table = model.config.decoder, model.weights.encoder.text_model.embed_tokens
        scale = embed_scale(nx, config.hidden_size)
        assert model.weights.decoder is not None, "the benchmark's models have one"
        begin = whole_steps(nx, model.weights.decoder, table, config, len(first), scale, model.config.eoi_token_index)
        if begin is None:
            return None
        positions = nx.xp.arange(cache.length, cache.length + count)[None]
        steps, all_run = begin(cache, cache.length + count), nx.xp.ones(len(first), dtype=bool)
        chunk = steps.next(first, all_run, rope_tables(nx, config, positions), (), config.pad_token_id)
        return chunk.logits[:, -1:]


def truth(config: Config, weights: Mapping[str, Any], backend: Backend, inputs: Inputs, lengths: Lengths) -> Work:
    """One float64 forward of text, image and a short answer. The weights stay in float32, which loses nothing, and are
    widened layer by layer, as the judge's truth does it."""
    nx = Numerics("float64", EXACT, backend, embed_dtype="float32")
    with nx.scope():
        arrays = {name: nx.xp.asarray(value) for name, value in weights.items()}
        ids, target, pixels = (nx.xp.asarray(x) for x in (inputs.mixed, inputs.target, inputs.pixels))
    model = T5Gemma2(config, tree(arrays), nx)

    def run() -> Array:
        return model(ids, target[:, : lengths.answer], pixel_values=pixels).logits

    return Work(lambda _: run(), backend.host)
