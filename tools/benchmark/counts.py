"""What each item of the benchmark has to do: operations of its products, and bytes that it cannot do without.

An operation is a multiplication or an addition: a product of (M, K) by (K, N) has 2·M·K·N. In attention only the pairs
of query and key that the mask allows are counted. Bytes are those of the weights, once, of what is given and of what is
returned; what a call keeps in between could stay in a cache. So the floor that follows is one for every implementation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from t5g2ref.config import Config, TextConfig
from t5g2ref.masks import Band, decoder_band, encoder_band
from t5g2ref.params import EYES, count, shapes

TINY = 10_000_000  # parameters; below this the lengths shrink


@dataclass(frozen=True)
class Lengths:
    """Tokens of each item.

    Args:
        source: of the encoder.
        target: of the decoder in one call.
        warm: decoder positions in the cache before the first timed step.
        steps: timed decoding steps of one repeat.
        answer: decoder tokens of the float64 truth.
        batch: rows, or images; the truth always has one.
    """

    source: int = 512
    target: int = 128
    warm: int = 32
    steps: int = 16
    answer: int = 16
    batch: int = 1

    @staticmethod
    def of(config: Config) -> Lengths:
        """The lengths that results are compared at, or short ones for a checkpoint that is itself a toy."""
        return Lengths(64, 16, 8, 8, 4) if count(config) < TINY else Lengths()

    def mixed(self, config: Config) -> int:
        """Encoder tokens of the truth: the text, and one image between its two marks."""
        return self.source + config.mm_tokens_per_image + 2


def pairs(band: Band, queries: int, keys: int) -> int:
    """Σ over the queries 0 … queries − 1 of the keys in [0, keys) that the band lets each see."""
    spans = (band.span(query, query, keys) for query in range(queries))
    return sum(high - low for low, high in spans)


def stack(text: TextConfig, rows: int, attended: list[int]) -> int:
    """One text stack over `rows` tokens, `attended` being each layer's number of pairs:

    Σ over layers of 2·rows·D·(N + 2·K)·H + 2·rows·N·H·D + 3 · 2·rows·D·F + 2 · 2·N·H·pairs.
    """
    width, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    products = 2 * rows * width * (heads + 2 * keys) + 2 * rows * heads * width
    products += 3 * 2 * rows * width * text.intermediate_size
    return sum(products + 2 * 2 * heads * seen for seen in attended)


def encode(config: Config, source: int) -> int:
    """The encoder's `stack` over the source; a full layer sees source² pairs, a sliding one its band's."""
    text = config.encoder
    return stack(text, source, [pairs(encoder_band(text, kind), source, source) for kind in text.layer_types])


def answer(config: Config, source: int, target: int) -> int:
    """The decoder in one call: its `stack` over the target, where each layer sees the causal band's pairs and all
    target · source of the cross half; the cross keys and values, 2·source·D·2·K·H a layer; and the logits,
    2·target·D·V."""
    text = config.decoder
    seen = [pairs(decoder_band(text, kind), target, target) + target * source for kind in text.layer_types]
    cross = 4 * source * text.hidden_size * text.num_key_value_heads * text.head_dim * text.num_hidden_layers
    return stack(text, target, seen) + cross + 2 * target * text.hidden_size * text.vocab_size


def vision(config: Config) -> int:
    """One image: patches 2·P·(C·p²)·D; each layer 2·P·(4·D² + 2·D·F) + 2 · 2·P²·D; the projector 2·M·D·D_text."""
    v = config.vision
    patches, width = v.patches_per_side**2, v.hidden_size
    layer = 2 * patches * (4 * width**2 + 2 * width * v.intermediate_size) + 2 * 2 * patches**2 * width
    cut = 2 * patches * v.num_channels * v.patch_size**2 * width
    return cut + v.num_hidden_layers * layer + 2 * config.mm_tokens_per_image * width * config.encoder.hidden_size


def step_operations(config: Config, source: int, own: int) -> int:
    """One decoding step of one row: the decoder's `stack` over one token that sees `own` positions (at most W in a
    sliding layer) and the source, and its logits."""
    text = config.decoder
    return stack(text, 1, _seen(text, source, own)) + 2 * text.hidden_size * text.vocab_size


def operations(item: str, config: Config, lengths: Lengths) -> int:
    """Of one call of an item, or of all timed steps of "decode"."""
    source, batch, mixed = lengths.source, lengths.batch, lengths.mixed(config)
    return {
        "encode": lambda: batch * encode(config, source),
        "forward": lambda: batch * (encode(config, source) + answer(config, source, lengths.target)),
        "decode": lambda: batch * sum(step_operations(config, source, own) for own in _owned(lengths)),
        "vision": lambda: batch * vision(config),
        "truth": lambda: vision(config) + encode(config, mixed) + answer(config, mixed, lengths.answer),
    }[item]()


def bytes_moved(item: str, config: Config, lengths: Lengths, itemsize: int) -> int:
    """Of one call of an item, or of all timed steps of "decode", in numbers of `itemsize` bytes."""
    batch, rows, eyes = lengths.batch, lengths.batch * lengths.source, _weights(config, EYES)
    width, v = config.encoder.hidden_size, config.vision
    seen = config.mm_tokens_per_image * width
    encoder = _weights(config, "encoder.text_model.layers.") + width  # and the last norm
    table, decoder = config.decoder.vocab_size * width, _weights(config, "decoder.")
    numbers = {
        "encode": lambda: encoder + 2 * rows * width,
        "forward": lambda: encoder + decoder + table + rows * width + _logits(config, batch * lengths.target),
        "vision": lambda: eyes + batch * (v.num_channels * v.image_size**2 + seen),
        "truth": lambda: eyes + encoder + decoder + table + _logits(config, lengths.answer),
    }
    return decode_bytes(config, lengths, itemsize) if item == "decode" else itemsize * numbers[item]()


def step_bytes(config: Config, source: int, own: int, itemsize: int, batch: int = 1) -> int:
    """What one decoding step must read: every parameter of the decoder and the embedding table once (for the logits),
    and for each row keys and values, 2·K·H for each of the `own` positions so far (at most W in a sliding layer) and of
    the source, in every layer."""
    text = config.decoder
    table = text.vocab_size * text.hidden_size
    cache = 2 * text.num_key_value_heads * text.head_dim * sum(_seen(text, source, own))
    return itemsize * (_weights(config, "decoder.") + table + batch * cache)


def decode_bytes(config: Config, lengths: Lengths, itemsize: int) -> int:
    """`step_bytes` summed over the timed steps; the n-th sees warm + n own positions, the new one among them."""
    return sum(step_bytes(config, lengths.source, own, itemsize, lengths.batch) for own in _owned(lengths))


def _owned(lengths: Lengths) -> range:
    """Own positions that each timed step sees."""
    return range(lengths.warm + 1, lengths.warm + lengths.steps + 1)


def _seen(text: TextConfig, source: int, own: int) -> list[int]:
    """Positions that a decoding step sees in each layer."""
    windows = (text.window(kind) for kind in text.layer_types)
    return [source + (own if window is None else min(own, window)) for window in windows]


def _weights(config: Config, begin: str | tuple[str, ...]) -> int:
    """Parameters whose names begin so."""
    return sum(math.prod(shape) for name, shape in shapes(config).items() if name.startswith(begin))


def _logits(config: Config, rows: int) -> int:
    return rows * config.decoder.vocab_size
