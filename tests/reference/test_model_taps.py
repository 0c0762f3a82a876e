"""The taps of a call: all of the table and no others, live, and never written after they were shown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Array, frozen, generator, same_bits
from small_inputs import (
    BOI,
    BOS,
    BOTH,
    EOI,
    FULL,
    IMAGE,
    SLIDING,
    Factory,
    image_ids,
    one_layer,
    pictures,
    ragged,
    tokens,
)

import t5g2ref
import t5g2ref.attention as attention_module
from t5g2ref import tap_words, taps
from t5g2ref.config import Config
from t5g2ref.model import Output, T5Gemma2
from t5g2ref.taps import Tap
from t5g2ref.trace import OFF, Trace, recorder


def extents(config: Config, tap: Tap, sizes: dict[str, int]) -> dict[str, int]:
    """What each letter of the package's legend is at this tap: widths go by the stack, S by what the keys are of."""
    part = tap.name.split(".layers.")[-1]
    if tap.module.startswith(("encoder.vision_tower", "encoder.multi_modal_projector")):
        v = config.vision
        width = config.encoder.hidden_size if part.endswith("projected") else v.hidden_size
        return {"I": sizes["images"], "P": v.patches_per_side**2, "M": 16, "D": width, "F": v.intermediate_size}
    stack = config.encoder if tap.module.startswith("encoder") else config.decoder
    source, own = sizes["source"], sizes["own"]
    if stack is config.encoder:
        queries, keys = source, source
    else:
        queries = sizes["new"]
        keys = source if ".cross_" in part else own + source if part.endswith("mask") else own
    return {
        "B": sizes["batch"],
        "T": queries,
        "S": keys,
        "D": stack.hidden_size,
        "F": stack.intermediate_size,
        "H": stack.head_dim,
        "N": stack.num_attention_heads,
        "K": stack.num_key_value_heads,
        "V": stack.vocab_size,
        "C": config.num_labels,
    }


def check_shapes(config: Config, table: list[Tap], seen: dict[str, Any], **sizes: int) -> None:
    assert len({tap.name for tap in table}) == len(table)
    assert set(seen) == {tap.name for tap in table}, set(seen) ^ {tap.name for tap in table}
    for tap in table:
        letters = extents(config, tap, sizes)
        expected = tuple(math.prod(letters[x] for x in axis.split("*")) for axis in tap.shape.split())
        assert np.shape(seen[tap.name]) == expected, f"{tap.name}: {tap.shape}"
        assert tap.exact == (np.asarray(seen[tap.name]).dtype == bool), tap.name


CALLS: dict[str, Callable[[T5Gemma2, dict[str, Any], Any, Trace], Output]] = {
    "lm": lambda net, given, labels, trace: net(**given, labels=labels, trace=trace),
    "sequence": lambda net, given, labels, trace: net.classify(**given, labels=labels, trace=trace),
    "token": lambda net, given, labels, trace: net.classify(**given, per_token=True, labels=labels, trace=trace),
}
LABELS = {
    "lm": frozen(generator("labels").integers(0, 300, (2, 12))),
    "sequence": frozen([4, 0]),
    "token": frozen(generator("labels").integers(0, 5, (2, 12))),
}


@pytest.mark.parametrize("loss", [True, False], ids=["loss", "no loss"])
@pytest.mark.parametrize("images", [True, False], ids=["images", "text"])
@pytest.mark.parametrize("task", list(CALLS))
def test_a_call_visits_the_tables_taps_and_no_others(
    model: Factory, config: Config, task: str, images: bool, loss: bool
) -> None:
    # The table is documentation, name map and plan of the conformance suite at once: a tap that is missing, extra or of
    # another shape is an error in one of the two. Letters of one size in two roles would hide that: none are here.
    given = dict(BOTH)
    if not images:  # words in place of the image tokens, which are refused without an image
        ids = given["input_ids"]
        given |= {"input_ids": frozen(np.where(ids == IMAGE, 50, ids))}
        del given["pixel_values"]
    out = CALLS[task](model(), given, LABELS[task] if loss else None, recorder(seen := {}))
    table = taps.table(config, images=images, task=task, loss=loss)
    check_shapes(config, table, seen, batch=2, images=3, source=image_ids().shape[1], new=12, own=12)
    assert seen["logits"] is out.logits
    assert seen.get("loss") is out.loss


@pytest.mark.parametrize("task", list(CALLS))
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_tracing_does_not_change_a_bit(model: Factory, task: str, dtype: str) -> None:
    net = model(dtype)
    quiet, heard = (CALLS[task](net, BOTH, LABELS[task], trace) for trace in (OFF, recorder({})))
    same_bits(heard.logits, quiet.logits)
    same_bits(heard.loss, quiet.loss)
    same_bits(heard.encoded.hidden, quiet.encoded.hidden)


def test_a_cached_step_visits_what_is_not_of_the_first_call(model: Factory, config: Config) -> None:
    # Own keys are those still held, all 8 or the last W − 1 = 5 of them, and the two new ones.
    net = model()
    cache = net.start(net.encode(tokens("a", 2, 9)))
    _, cache = net.decode(tokens("b", 2, 8), cache)
    hidden, _ = net.decode(tokens("c", 2, 2), cache, trace=(trace := recorder(seen := {})))
    net.logits(hidden, trace)
    table = [tap for tap in taps.table(config, images=False) if not tap.first_call]
    for kind, own in ((SLIDING, 5 + 2), (FULL, 8 + 2)):
        layers = [f"decoder.layers.{i}" for i, other in enumerate(config.decoder.layer_types) if other == kind]
        part = [tap for tap in table if tap.name.startswith(tuple(f"{at}." for at in layers)) or tap.name in layers]
        found = {tap.name: seen.pop(tap.name) for tap in part}
        check_shapes(config, part, found, batch=2, images=0, source=9, new=2, own=own)
        table = [tap for tap in table if tap not in part]
    check_shapes(config, table, seen, batch=2, images=0, source=9, new=2, own=-1)


def test_values_come_in_the_tables_order(model: Factory, config: Config) -> None:
    # "The first bad one is the culprit." Cross keys and values alone are made earlier than their layer: at the start.
    model()(**BOTH, trace=recorder(seen := {}))
    early = re.compile(r"decoder\.layers\.\d+\.self_attn\.cross_(k_proj|v_proj|k_norm)$")
    order = [tap.name for tap in taps.table(config)]
    assert [name for name in seen if not early.match(name)] == [name for name in order if not early.match(name)]
    assert [name for name in seen if early.match(name)] == [name for name in order if early.match(name)]


def test_every_tap_is_live(model: Factory, config: Config) -> None:
    # What a sink returns is what the model goes on with, or restarting from a peer's activations would compare nothing.
    # Masks are made for the listener alone. One layer each keeps this to two hundred short calls.
    small = one_layer(one_layer(config, "encoder", SLIDING), "decoder", FULL)
    small = replace(small, vision=replace(small.vision, num_hidden_layers=1))
    net, table = model(config=small), taps.table(small, loss=True)
    given = {
        "input_ids": frozen([[BOS, BOI, *[IMAGE] * 16, EOI]]),
        "pixel_values": pictures("p", 1),
        "decoder_input_ids": tokens("b", 1, 3),
        "labels": frozen([[1, 2, 3]]),
    }
    quiet = net(**given)
    assert quiet.loss is not None
    for tap in table:
        if tap.exact:
            continue

        def nudge(name: str, value: Any, wanted: str = tap.name) -> Any:
            # Not the same for every key: a softmax would not feel that.
            return (
                value + 0.1 * np.sin(1.0 + np.arange(np.size(value))).reshape(np.shape(value))
                if name == wanted
                else value
            )

        out = net(**given, trace=Trace(nudge))
        assert out.loss is not None
        assert np.isfinite(out.loss)
        assert abs(out.loss - quiet.loss) > 1e-9, f"{tap.name} is heard but not listened to"


def test_without_a_listener_no_dense_mask_is_made(model: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Array:
        raise AssertionError("a dense mask was made")

    monkeypatch.setattr(attention_module, "dense_mask", refuse)
    model()(**BOTH)
    with pytest.raises(AssertionError, match="a dense mask was made"):
        model()(**BOTH, trace=recorder({}))


def test_recorded_masks_are_the_rules(model: Factory, config: Config) -> None:
    # The exact lane compares these: band and padding over own keys, then the encoder's padding over cross keys.
    mask, decoder_mask = ragged((2, 13), "left"), ragged((2, 9), "right")
    model()(
        tokens("a", 2, 13),
        tokens("b", 2, 9),
        attention_mask=mask,
        decoder_attention_mask=decoder_mask,
        trace=recorder(seen := {}),
    )
    q, k = np.mgrid[:13, :13]
    near_by = (q >= k) & (q - k < 4) | (k > q) & (k - q < 4)  # W = 7: three on each side
    own_q, own_k = np.mgrid[:9, :9]
    cross = np.broadcast_to(mask[:, None] == 1, (2, 9, 13))
    for i, kind in enumerate(config.encoder.layer_types):
        expected = (mask[:, None] == 1) & (near_by if kind == SLIDING else True)
        same_bits(seen[f"encoder.text_model.layers.{i}.self_attn.mask"], np.broadcast_to(expected, (2, 13, 13)))
    for i, kind in enumerate(config.decoder.layer_types):
        own = (own_k <= own_q) & ((own_q - own_k < 6) | (kind == FULL)) & (decoder_mask[:, None] == 1)
        expected = np.concatenate([own, cross], axis=2)
        same_bits(seen[f"decoder.layers.{i}.self_attn.mask"], expected)


def test_a_recorder_refuses_a_second_call() -> None:
    trace = recorder({})
    trace("a", 1)
    with pytest.raises(ValueError, match="tap a was recorded twice"):
        trace("a", 2)


def test_a_trace_further_in_has_the_longer_name() -> None:
    seen: dict[str, Any] = {}
    trace = recorder(seen).at("layers.3").at("mlp")
    assert trace("up_proj", 5) == 5
    trace.lazy("mask", lambda: 6)
    assert seen == {"layers.3.mlp.up_proj": 5, "layers.3.mlp.mask": 6}
    assert OFF.at("layers.3") is OFF
    assert OFF("x", 5) == 5


# Nothing is written in place


def test_no_value_is_written_after_it_was_shown(model: Factory) -> None:
    # A recorded value must stay what it was: every tapped array is made read-only as it passes, in two cached calls.
    def freeze(_: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        return value

    net, trace = model(), Trace(freeze)
    encoded = net.encode(image_ids(), pixel_values=pictures("p", 3), trace=trace)
    _, cache = net.decode(tokens("b", 2, 8), net.start(encoded, trace), trace=trace)
    hidden, _ = net.decode(tokens("c", 2, 2), cache, trace=trace)
    net.logits(hidden, trace)
    for task, call in CALLS.items():
        call(net, BOTH, LABELS[task], trace)


def test_weights_and_inputs_of_these_tests_are_read_only(weights: dict[str, Array]) -> None:
    # A write into any of them would have raised somewhere above; this makes sure that it would.
    assert not any(value.flags.writeable for value in (*weights.values(), *BOTH.values(), *LABELS.values()))


def test_every_kind_of_tap_is_said_in_words() -> None:
    config = Config.load(t5g2ref.bundled("tiny"))
    tables = [taps.table(config, task=task, loss=True) for task in ("lm", "sequence", "token")]
    assert {tap_words.kind(tap) for table in tables for tap in table} == set(tap_words.MEANINGS)
    order = list(dict.fromkeys(tap_words.kind(tap) for tap in tables[0]))
    assert [name for name in tap_words.MEANINGS if name in order][:20] == order[:20]
    assert max(map(len, tap_words.lines())) <= 98
    shown = "".join("".join(tap_words.lines()).split())
    assert all("".join(words.split()) in shown for words in tap_words.MEANINGS.values())
