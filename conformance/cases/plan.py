"""What a case asks a peer to show: which taps, of which shape, which of their tokens count, and the least of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import gcd, prod
from typing import Any

import numpy as np

from conformance.cases import picked
from conformance.cases.case import Case
from t5g2ref import taps
from t5g2ref.config import Config
from t5g2ref.tap_inputs import inputs_of
from t5g2ref.taps import Tap

Array = np.ndarray[Any, Any]
NORMS = ("norm", "layernorm")
PIECES = 8  # of a token whose numbers are independent


Shown = Callable[[str], bool]
"""Of a tap's name, whether a peer says that it shows it."""

IDS = {"input_ids": "B S", "decoder_input_ids": "B T"}
"""What a dump shows besides taps: the ids as the program saw them, compared exactly."""


def plan_of(config: Config, case: Case) -> list[tuple[int, Tap]]:
    """Every (call, tap) that a peer has to show in this case, in order."""
    plan: list[tuple[int, Tap]] = []
    for call, (run, (first, _)) in enumerate(case.calls):
        images = run.pixel_values is not None
        table = taps.table(config, images=images, task=case.task, loss=run.labels is not None)
        plan += [(call, tap) for tap in table if first == 0 or not tap.first_call]
    return plan


def inputs(config: Config, case: Case) -> dict[tuple[int, str], list[tuple[int, str]]]:
    """Each (call, tap) → those that it is computed from: of its own call, of the one before, or of its run's first."""
    places = {(call, tap.name) for call, tap in plan_of(config, case)}
    starts = [max(c for c in range(call + 1) if case.calls[c][1][0] == 0) for call in range(len(case.calls))]
    found = {}
    for call, name in places:
        wanted = [(call - 1 if other == name else call, other) for other in inputs_of(name, config)]
        made = [place if place in places else (starts[call], place[1]) for place in wanted if place[0] >= starts[call]]
        found[call, name] = [place for place in made if place in places]
    return found


def required(tap: Tap) -> bool:
    """Whether every dump has to show it: a stack's input, its residual after each layer, its output, the logits."""
    parts = tap.name.split(".")
    if tap.name in ("encoder.text_model.inputs_embeds", "encoder.text_model.norm", "decoder.embed_tokens", "logits"):
        return True
    return parts[-2:-1] == ["layers"] and "vision_tower" not in parts


def minimum(config: Config, case: Case) -> list[list[str]]:
    """Per call the least that a dump has to show: ids, embeddings, the residual after each layer, the encoder's
    output, and logits."""
    calls = [["input_ids"] if first == 0 else [] for _, (first, _) in case.calls]
    for call, tap in plan_of(config, case):
        if required(tap):
            calls[call].append(tap.name)
    for names in calls[: len(calls) * config.has_decoder]:
        names.append("decoder_input_ids")
    return calls


def validity(case: Case, call: int, tap: Tap, shape: tuple[int, ...]) -> Array | None:
    """bool over the tap's token axes, False on the padding that the case laid down; None where nothing is padded."""
    run, _ = case.calls[call]
    if run.picked is not None:  # such a run has no padding
        return None
    return _rows(case, call, tap, shape, run.encoder_valid, run.decoder_valid)


def ids_at(case: Case, call: int, tap: Tap, shape: tuple[int, ...]) -> Array | None:
    """The id at each token of the tap, over its token axes; None where its tokens are no ids."""
    run, _ = case.calls[call]
    return _rows(case, call, tap, shape, run.input_ids, run.decoder_input_ids)


def _rows(case: Case, call: int, tap: Tap, shape: tuple[int, ...], source: Array, own: Array) -> Array | None:
    """What source (B, S) or own (B, T) has at the tokens that the tap is of in this call; None for a tap of neither."""
    run, (first, last) = case.calls[call]
    if tap.rows == "all":
        return None
    if tap.rows == "encoder":
        return source
    held = own[:, :last]
    if tap.rows == "own":
        return held[:, last - shape[2] :]
    keep = run.logits_to_keep if tap.rows == "logits" else None
    return held[:, first if keep is None else max(first, last - keep) :]


def judged_part(config: Config, case: Case) -> Callable[[int, str, Any], Any] | None:
    """Of a call's tap, what is judged of what a peer shows; None where that is everything."""
    if not case.picks:
        return None
    taps = {(call, tap.name): tap for call, tap in plan_of(config, case)}

    def part(call: int, name: str, value: Any) -> Any:
        tap = taps.get((call, name))
        return value if tap is None else picked.judged(case.calls[call][0].picked, tap, value)

    return part


def valid_tokens(value: Array, tap: Tap, case: Case, call: int) -> Array:
    """The tap's value at the tokens that count, token axes first; as it is where its shape is not the tap's."""
    if len(tap.shape.split()) != value.ndim:
        return value
    keep = validity(case, call, tap, value.shape)
    moved = np.moveaxis(value, tap.token_axes, range(len(tap.token_axes)))
    return moved if keep is None or moved.shape[: keep.ndim] != keep.shape else moved[keep]


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
    tokens = None if run.picked is None or picked.whole(tap) else run.picked.at(tap)
    keys = source if encoder or tap.rows == "encoder" else _held(config, tap, first, last)
    if tap.exact and not encoder:  # own keys, then all cross keys
        keys += source
    if tokens is not None and "T" in tap.shape.split():
        queries = len(tokens)
    elif tokens is not None:
        keys = len(tokens)
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
    return lengths_of(axes_of(tap.shape), lengths)


def axes_of(text: str) -> list[list[str]]:
    """A line of axes taken apart: "B T N*H" → [["B"], ["T"], ["N", "H"]]."""
    return [axis.split("*") for axis in text.split()]


def lengths_of(axes: list[list[str]], lengths: dict[str, int]) -> tuple[int, ...]:
    """The length of each axis, merged ones multiplied."""
    return tuple(prod(lengths[letter] for letter in axis) for axis in axes)


def parts_of(config: Config, tap: Tap, features: int) -> int:
    """Pieces of one token whose roundings are independent: an attention's heads. A norm's token hangs on one root, and
    is one piece. Elsewhere a number's error is its own, and eight pieces make more of few tokens."""
    if tap.name.endswith(NORMS):
        return 1
    if not tap.name.endswith("self_attn.attention"):
        return gcd(PIECES, features)
    if tap.name.startswith("encoder.vision_tower"):
        return config.vision.num_attention_heads
    return (config.encoder if tap.name.startswith("encoder.") else config.decoder).num_attention_heads


def kind_of(name: str) -> str:
    """A tap's name with its layer's number left out."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
