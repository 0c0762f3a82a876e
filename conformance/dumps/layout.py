"""The shape of every tap of every call, before anything is computed; and layouts that a dump declares.

A layout is a line of axes in the letters of the package's legend, as in the table of taps: "B T N*H" is one merged
axis, "B T N H" the same with the heads apart. `valid` stands for both token axes of a tap (B and T, or B and S) where
only the tokens that are no padding are kept, row by row: "valid D". A layout is declared, never guessed.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from conformance.case import Case
from conformance.judge import plan_of
from t5g2ref.config import Config
from t5g2ref.taps import Tap

Array = np.ndarray[Any, Any]
VALID = "valid"
IDS = {"input_ids": "B S", "decoder_input_ids": "B T"}
"""What a dump shows besides taps: the ids as the program saw them, compared exactly."""


class LayoutError(ValueError):
    """The declared layout is none of this tap, or the array does not have it."""


def sizes(config: Config, case: Case, call: int, tap: Tap) -> dict[str, int]:
    """Letter → length, for the axes of this tap in this call."""
    run, (first, last) = case.calls[call]
    batch, source = run.input_ids.shape
    common = {"B": batch, "V": config.decoder.vocab_size, "C": case.num_labels, "M": config.mm_tokens_per_image}
    if tap.name.startswith(("encoder.vision_tower", "encoder.multi_modal_projector")):
        v, images = config.vision, 0 if run.pixel_values is None else len(run.pixel_values)
        width = config.encoder.hidden_size if tap.name.endswith(".projected") else v.hidden_size
        return common | {"I": images, "P": v.patches_per_side**2, "D": width, "F": v.intermediate_size}
    encoder = tap.name.startswith("encoder.")
    stack = config.encoder if encoder else config.decoder
    queries = source if encoder else last - first
    if tap.rows == "logits" and run.logits_to_keep is not None:
        queries = min(queries, run.logits_to_keep)
    keys = source if encoder or tap.rows == "encoder" else _held(config, tap, first, last)
    if tap.exact and not encoder:  # own keys, then all cross keys
        keys += source
    heads = {"N": stack.num_attention_heads, "K": stack.num_key_value_heads, "H": stack.head_dim}
    return common | heads | {"T": queries, "S": keys, "D": stack.hidden_size, "F": stack.intermediate_size}


def _held(config: Config, tap: Tap, first: int, last: int) -> int:
    """How many own positions a decoder layer attends to: a sliding one keeps W − 1 of the past."""
    parts = tap.name.split(".")
    if parts[1:2] != ["layers"]:
        return last
    window = config.decoder.window(config.decoder.layer_types[int(parts[2])])
    return last if window is None else min(first, window - 1) + last - first


def shape_of(tap: Tap, lengths: dict[str, int]) -> tuple[int, ...]:
    """The tap's shape, with `lengths` from `sizes`."""
    return _shape(_axes(tap.shape), lengths)


def minimum(config: Config, case: Case) -> list[list[str]]:
    """Per call the least that a dump has to show: ids, embeddings, the residual after each layer, the encoder's
    output, and logits."""
    calls = [["input_ids"] if first == 0 else [] for _, (first, _) in case.calls]
    for call, tap in plan_of(config, case):
        if _required(tap):
            calls[call].append(tap.name)
    for names in calls:
        names.append("decoder_input_ids")
    return calls


def _required(tap: Tap) -> bool:
    parts = tap.name.split(".")
    if tap.name in ("encoder.text_model.inputs_embeds", "encoder.text_model.norm", "decoder.embed_tokens", "logits"):
        return True
    return parts[-2] == "layers" and "vision_tower" not in parts if len(parts) > 1 else False


def check(declared: str, tap: Tap) -> None:
    """LayoutError unless `declared` has each letter of the tap once (`valid` in place of both token axes)."""
    given = [letter for axis in _axes(declared) for letter in axis]
    wanted = [letter for axis in _axes(tap.shape) for letter in axis]
    if VALID in given:
        tokens = _tokens(tap)
        if len(tokens) != 2 or tap.rows == "all":
            raise LayoutError(f"{tap.name} ({tap.shape}) has no padding to leave out; declare it without {VALID!r}")
        wanted = [VALID, *(letter for letter in wanted if letter not in tokens)]
    if sorted(given) != sorted(wanted):
        raise LayoutError(f"{tap.name} is declared as {declared!r}, expected each of {' '.join(wanted)} once")


def arranged(array: Array, declared: str, tap: Tap, lengths: dict[str, int], keep: Array | None) -> Array:
    """The array, laid out as `declared`, in the table's layout.

    Args:
        keep: bool over the two token axes, False on padding (`judge.validity`); None for no padding. Tokens that a
            `valid` layout leaves out become zeros, which nothing valid reads.

    Raises:
        LayoutError: the array's shape is not what `declared` says.
    """
    check(declared, tap)
    axes, letters = _axes(declared), [letter for axis in _axes(declared) for letter in axis]
    if VALID in letters:
        first, second = _tokens(tap)
        keep = np.ones((lengths[first], lengths[second]), bool) if keep is None else keep
        lengths = lengths | {VALID: int(keep.sum())}
    expected = _shape(axes, lengths)
    if array.shape != expected:
        raise LayoutError(f"declared as {declared or 'a scalar'} = {expected}, found {array.shape}")
    apart = array.reshape([lengths[letter] for letter in letters])
    if keep is not None and VALID in letters:
        apart = np.moveaxis(apart, letters.index(VALID), 0)
        whole = np.zeros((*keep.shape, *apart.shape[1:]), apart.dtype)
        whole[keep] = apart
        letters, apart = [first, second, *(letter for letter in letters if letter != VALID)], whole
    order = [letters.index(letter) for axis in _axes(tap.shape) for letter in axis]
    return np.ascontiguousarray(apart.transpose(order)).reshape(shape_of(tap, lengths))


def _axes(text: str) -> list[list[str]]:
    return [axis.split("*") for axis in text.split()]


def _shape(axes: list[list[str]], lengths: dict[str, int]) -> tuple[int, ...]:
    return tuple(prod(lengths[letter] for letter in axis) for axis in axes)


def _tokens(tap: Tap) -> list[str]:
    axes = tap.shape.split()
    return [axes[axis] for axis in tap.token_axes]
