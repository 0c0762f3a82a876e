"""The whole model: configuration, weights and numerics joined, with its inputs checked once at the door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from t5g2ref import decoder, encoder, inputs, vision
from t5g2ref import outputs as heads
from t5g2ref.cache import Cache
from t5g2ref.config import Config
from t5g2ref.embedding import embed, place_images, told_ids
from t5g2ref.given_masks import answer_masks, refuse_alone, source_masks
from t5g2ref.numerics import Array, Numerics
from t5g2ref.trace import OFF, Trace
from t5g2ref.weights import Stack, Weights


@dataclass(frozen=True)
class Encoded:
    """The encoder's output: hidden (B, S, D) and valid bool (B, S), False on padding."""

    hidden: Array
    valid: Array


@dataclass(frozen=True)
class Output:
    """One call's result: logits (B, T, V), or (B, T, labels), or (B, labels); the loss if labels were given; the
    cache after it; and the encoder's output, to be used again."""

    logits: Array
    loss: Array | None
    cache: Cache
    encoded: Encoded


P = ParamSpec("P")
R = TypeVar("R")


def scoped(method: Callable[Concatenate[T5Gemma2, P], R]) -> Callable[Concatenate[T5Gemma2, P], R]:
    """The method runs on its model's own device, stream and memory pool."""

    @wraps(method)
    def call(self: T5Gemma2, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.nx.scope():
            return method(self, *args, **kwargs)

    return call


@dataclass(frozen=True)
class T5Gemma2:
    """T5Gemma 2 as pure functions over (config, weights, numerics).

    Args:
        config: the geometry, from `Config.load` or `preset`.
        weights: the tree of parameters, named as in the checkpoint (`params.tree`).
        nx: backend, dtype and rounding profile.
    """

    config: Config
    weights: Weights
    nx: Numerics

    def with_numerics(self, nx: Numerics) -> T5Gemma2:
        """The same weights under other numerics (a float64 oracle beside a float32 control)."""
        return replace(self, nx=nx)

    @property
    def _decoder(self) -> Stack:
        if self.weights.decoder is None:
            raise ValueError("this checkpoint is an encoder alone: call encode, or give one that has a decoder")
        return self.weights.decoder

    @scoped
    def embed(self, input_ids: Any) -> Array:
        """input_ids (B, T) integer → (B, T, D), what `inputs_embeds` and `decoder_inputs_embeds` are for these ids:
        scaled, and the end-of-image id with its own row. Rows of image tokens are still to be replaced."""
        return self._embedded("input_ids", input_ids, "", None)[1]

    def _embedded(self, name: str, ids: Any, other: str, embeds: Any) -> tuple[Array, Array]:
        """ids (B, T) and embeddings (B, T, D), from either; ids of given embeddings are told as far as they can be."""
        inputs.one_of(name, ids, other, embeds)
        nx, config, table = self.nx, self.config, self.weights.encoder.text_model.embed_tokens
        if embeds is None:
            ids = inputs.token_ids(nx, config, name, ids)
            return ids, embed(nx, table, ids, config.eoi_token_index)
        given, x = inputs.embeddings(nx, other, embeds, config.encoder.hidden_size)
        return told_ids(nx, table, given, config.image_token_index), x

    @scoped
    def encode(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        pixel_values: Any = None,
        trace: Trace = OFF,
        *,
        inputs_embeds: Any = None,
    ) -> Encoded:
        """input_ids (B, S) integer, attention_mask (B, S) of 0/1, position_ids (B, S) or (1, S), pixel_values
        (I, C, side, side) float in [-1, 1] → the encoder's output. Positions count from 0 over the padded row.

        Args:
            attention_mask: also (B or 1, 1, S or 1, S), or a mapping of such by layer kind, as `given_masks` has it.
                It stands in the place of window and padding; what no query sees of it is padding to the decoder.
            inputs_embeds: (B, S, D) floats in the place of the ids, taken as they are: `embed` says what those of ids
                are. Where pixel_values are given, rows that equal the image token's are replaced.

        Raises:
            ValueError: a wrong shape, dtype or id, no ids at all, or images that do not match their tokens.
        """
        w, config, nx, inner = self.weights.encoder, self.config, self.nx, trace.at("encoder")
        ids, x = self._embedded("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        given, valid = source_masks(nx, attention_mask, ids.shape, config.encoder.layer_types)
        longest = config.encoder.max_position_embeddings
        positions = inputs.positions(nx, "position_ids", position_ids, ids.shape, 0, longest)
        x = x if input_ids is None else inner("text_model.embed_tokens", x)
        if pixel_values is None and bool((ids == config.image_token_index).any()):
            name = "input_ids" if inputs_embeds is None else "inputs_embeds"
            raise ValueError(
                f"{name} hold image tokens (id {config.image_token_index}) but there are no pixel_values for them"
            )
        if pixel_values is not None:
            pixels = inputs.pixel_values(nx, config, pixel_values)
            features = vision.image_features(nx, w, config, pixels, inner)
            x = place_images(x, ids, features, config.image_token_index)
        x = encoder.encode(nx, w.text_model, config.encoder, x, positions, valid, inner.at("text_model"), given)
        return Encoded(x, valid)

    @scoped
    def start(self, encoded: Encoded, trace: Trace = OFF) -> Cache:
        """An empty cache over this encoder output; its cross keys and values are projected here, once."""
        stack, config = self._decoder, self.config.decoder
        return decoder.start(self.nx, stack, config, encoded.hidden, encoded.valid, trace.at("decoder"))

    @scoped
    def decode(
        self,
        decoder_input_ids: Any,
        cache: Cache,
        decoder_attention_mask: Any = None,
        decoder_position_ids: Any = None,
        trace: Trace = OFF,
        *,
        decoder_inputs_embeds: Any = None,
        cross_attention_mask: Any = None,
    ) -> tuple[Array, Cache]:
        """New decoder ids (B, T) → hidden states (B, T, D) and the advanced cache. Mask and positions are those of
        the new ids alone; positions go on from the cache's length unless given.

        Args:
            decoder_attention_mask: also (B or 1, 1, T or 1, past + T), or a mapping of such by layer kind, as
                `given_masks` has it. It stands in the place of causality, window and padding.
            decoder_inputs_embeds: (B, T, D) floats in the place of the ids, which are None then.
            cross_attention_mask: (B or 1, 1, T or 1, S_enc) over the encoder's keys, in the place of its padding.

        Raises:
            ValueError: a wrong shape, dtype or id; a mask that sees what a sliding layer's cache has not any more.
        """
        nx, config = self.nx, self.config
        # Tied: one table for both stacks and the logits.
        ids, x = self._embedded("decoder_input_ids", decoder_input_ids, "decoder_inputs_embeds", decoder_inputs_embeds)
        if ids.shape[0] != cache.batch:
            name = "decoder_input_ids" if decoder_inputs_embeds is None else "decoder_inputs_embeds"
            raise ValueError(f"{name} have {ids.shape[0]} rows but the cache was started with {cache.batch}")
        masks = (decoder_attention_mask, cross_attention_mask)
        given, cross, valid = answer_masks(nx, *masks, ids.shape, cache, config.decoder.layer_types)
        start, longest = cache.length, config.decoder.max_position_embeddings
        positions = inputs.positions(nx, "decoder_position_ids", decoder_position_ids, ids.shape, start, longest)
        inner = trace.at("decoder")
        x = x if decoder_input_ids is None else inner("embed_tokens", x)
        return decoder.decode(nx, self._decoder, config.decoder, x, positions, cache, valid, inner, given, cross)

    @scoped
    def logits(self, hidden: Array, trace: Trace = OFF) -> Array:
        """hidden (B, T, D) → language-model logits (B, T, V)."""
        return heads.lm_logits(self.nx, self.weights.encoder.text_model.embed_tokens.weight, self.config, hidden, trace)

    @scoped
    def __call__(
        self,
        input_ids: Any = None,
        decoder_input_ids: Any = None,
        *,
        attention_mask: Any = None,
        position_ids: Any = None,
        pixel_values: Any = None,
        decoder_attention_mask: Any = None,
        decoder_position_ids: Any = None,
        inputs_embeds: Any = None,
        decoder_inputs_embeds: Any = None,
        cross_attention_mask: Any = None,
        labels: Any = None,
        trace: Trace = OFF,
    ) -> Output:
        """The whole language model in one call; decoder ids default to the labels shifted right.

        Arguments are those of `encode` and `decode`. A 4-D attention_mask needs a cross_attention_mask beside it.
        labels (B, T) integer, −100 to ignore: mean cross-entropy without a further shift.
        """
        refuse_alone(self.nx, attention_mask, cross_attention_mask)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError("give decoder_input_ids, or labels from which they can be made by shifting right")
            decoder_input_ids = self.shift_right(labels)
        encoded = self.encode(input_ids, attention_mask, position_ids, pixel_values, trace, inputs_embeds=inputs_embeds)
        hidden, cache = self.decode(
            decoder_input_ids,
            self.start(encoded, trace),
            decoder_attention_mask,
            decoder_position_ids,
            trace,
            decoder_inputs_embeds=decoder_inputs_embeds,
            cross_attention_mask=cross_attention_mask,
        )
        logits = self.logits(hidden, trace)
        if labels is None:
            return Output(logits, None, cache, encoded)
        targets = inputs.class_labels(self.nx, labels, logits.shape[:2], logits.shape[2])
        return Output(logits, trace("loss", heads.cross_entropy(self.nx, logits, targets)), cache, encoded)

    @scoped
    def classify(
        self,
        input_ids: Any,
        decoder_input_ids: Any = None,
        *,
        per_token: bool = False,
        labels: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        pixel_values: Any = None,
        decoder_attention_mask: Any = None,
        decoder_position_ids: Any = None,
        trace: Trace = OFF,
    ) -> Output:
        """A classifier (weights with `score.out_proj`): logits (B, labels), or (B, T, labels) with `per_token`.
        Decoder ids default to the encoder's, shifted right."""
        if self.weights.score is None:
            raise ValueError(
                "these weights have no score.out_proj: this is a language-model checkpoint, not a classifier"
            )
        nx, config = self.nx, self.config
        encoded = self.encode(input_ids, attention_mask, position_ids, pixel_values, trace)
        ids = self.shift_right(input_ids) if decoder_input_ids is None else decoder_input_ids
        ids = inputs.array(nx, "decoder_input_ids", ids)  # checked by decode
        cache = self.start(encoded, trace)
        hidden, cache = self.decode(ids, cache, decoder_attention_mask, decoder_position_ids, trace)
        scores = heads.classify_tokens(nx, self.weights.score, hidden, trace)
        if not per_token:
            scores = heads.pool_last(nx, scores, ids, config.decoder.pad_token_id)
        scores = trace("logits", scores)
        return Output(scores, self._class_loss(scores, labels, per_token, trace), cache, encoded)

    def _class_loss(self, scores: Array, labels: Any, per_token: bool, trace: Trace) -> Array | None:
        if labels is None:
            return None
        nx, config, classes = self.nx, self.config, scores.shape[-1]
        if per_token:
            targets = inputs.class_labels(nx, labels, scores.shape[:2], classes)
            return trace("loss", heads.cross_entropy(nx, scores, targets))
        targets = inputs.array(nx, "labels", labels)
        kind = config.problem_type or heads.problem_type(classes, targets)
        if kind == "single_label_classification":
            targets = inputs.class_labels(nx, targets, scores.shape[:1], classes)
        else:
            shape = scores.shape[:1] if targets.ndim == 1 and classes == 1 else scores.shape
            targets = inputs.numbers(nx, targets, shape)
        return trace("loss", heads.sequence_loss(nx, config, scores, targets))

    def shift_right(self, labels: Any) -> Array:
        """Decoder inputs made from labels or from encoder ids: bos in front, −100 becomes pad."""
        stack, ids = self.config.decoder, inputs.array(self.nx, "labels", labels)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(f"labels: expected integers (batch, length), found {ids.dtype} {tuple(ids.shape)}")
        return heads.shift_right(self.nx, ids, stack.bos_token_id, stack.pad_token_id)
